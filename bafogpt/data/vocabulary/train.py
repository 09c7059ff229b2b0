"""Trains a new tokenizer: BPE with ``▁`` for the space and byte fallback, as SentencePiece makes it.

The ``tokenizers`` library learns the merges. Pieces are learned within words, digits are single, and letters are never
joined with punctuation. No merge crosses such a border, so the file needs no pre-tokenizer, and ``extend`` can extend
it like Gemma's. A ``▁`` in the text becomes a space, as with every tokenizer of this kind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.core import digest
from bafogpt.core.errors import DataError, UsageError
from bafogpt.core.files import new_folder, require_new
from bafogpt.core.settings import Settings
from bafogpt.data import sources as text_sources
from bafogpt.data.documents import TextFile
from bafogpt.data.vocabulary import files, word_counts
from bafogpt.data.vocabulary.extend import MIN_PAIR_COUNT, unreachable
from bafogpt.data.vocabulary.word_counts import SPACE, Progress

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""With their ids in Gemma."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ALPHABET = 1000
"""Most characters that become pieces, at most half of all pieces; the others are bytes."""
FEWEST = 512
SPLIT = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}|{SPACE}?[^{SPACE}\s\p{{L}}\p{{M}}\p{{N}}]+|\s|{SPACE}+"


@dataclass
class TrainReport:
    """What was trained."""

    out: str
    size: int
    merges: int
    documents: int
    words: int
    seconds: float


def train(
    corpus: Sequence[str],
    out: Path,
    *,
    pieces: int = 40_000,
    language: str = "zul",
    settings: Settings | None = None,
    progress: Progress = lambda _: None,
) -> TrainReport:
    """Train a tokenizer of ``pieces`` in all, special ones and bytes included, and write it to the new folder ``out``.

    ``progress`` counts documents. Raises :class:`UsageError` for too few pieces,
    :class:`~bafogpt.core.errors.ConflictError` where ``out`` exists, and :class:`DataError` for too little text in
    ``language``."""
    if pieces < FEWEST:
        raise UsageError(f"--pieces {pieces} is too few: bytes alone need {len(BYTES)}", f"--pieces {FEWEST}")
    began = time.monotonic()
    require_new(out)
    read = _Reader([file for source in corpus for file in text_sources.find(source, settings)], language, progress)
    model = _learned(read.texts(), pieces - len(SPECIAL) - len(BYTES))
    if not read.documents:
        raise DataError(
            f"{', '.join(corpus)}: no text in '{language}'", "--language CODE, as the records' 'lang' has it"
        )
    size = len(model["vocab"]) + len(SPECIAL) + len(BYTES)
    if size < pieces:
        message = f"the corpus gives {size:,} pieces, not {pieces:,}: no other pair occurs {MIN_PAIR_COUNT} times"
        raise DataError(message, f"--pieces {size}, or add text" if size >= FEWEST else "add text")
    _write(out, model, read)
    return TrainReport(str(out), size, len(model["merges"]), read.documents, read.words, time.monotonic() - began)


class _Reader:
    """Reads the texts of files and counts them."""

    def __init__(self, files: Sequence[TextFile], language: str, progress: Progress) -> None:
        self.files = files
        self.language = language
        self.documents = self.words = 0
        self._progress = progress

    def texts(self) -> Iterator[str]:
        for file in self.files:
            for text in word_counts.texts(file, self.language, replay=False):
                self.documents += 1
                self.words += len(text.split())
                self._progress(1)
                yield text


def _learned(texts: Iterator[str], size: int) -> dict[str, Any]:
    """The library's model: ``size`` pieces without special ones and bytes."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as FastTokenizer

    engine = FastTokenizer(models.BPE())
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=MIN_PAIR_COUNT,
        limit_alphabet=min(ALPHABET, size // 2),
        initial_alphabet=[SPACE],
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(engine.to_str())["model"]
    return model


def _content(model: dict[str, Any]) -> dict[str, Any]:
    """The ``tokenizer.json``, laid out like Gemma's: special pieces, bytes, learned pieces."""
    learned = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {piece: number for number, piece in enumerate((*SPECIAL, *BYTES, *learned))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": SPECIAL[2], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": piece, **flags} for number, piece in enumerate(SPECIAL)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, second],
            "special_tokens": {SPECIAL[2]: {"id": SPECIAL[2], "ids": [2], "tokens": [SPECIAL[2]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {**model, "unk_token": SPECIAL[3], "fuse_unk": True, "byte_fallback": True, "vocab": vocab},
    }


def _write(out: Path, model: dict[str, Any], read: _Reader) -> None:
    from tokenizers import Tokenizer as FastTokenizer

    made = json.dumps(_content(model), ensure_ascii=False, indent=2)
    engine = FastTokenizer.from_str(made)
    first = len(SPECIAL) + len(BYTES)
    learned = [(number, piece) for piece, number in engine.get_vocab().items() if number >= first]
    missed = unreachable(engine, learned)
    assert not missed, f"{len(missed)} pieces are not tokenized as themselves: {missed[:5]}"
    origin = {
        "schema": files.LINEAGE_SCHEMA,
        "tokenizer": digest.of_bytes(made.encode()),
        "base": None,
        "corpus": {"documents": read.documents, "words": read.words, "files": {f.name: f.digest for f in read.files}},
    }
    with new_folder(out) as folder:
        (folder / files.TOKENIZER).write_text(made, encoding="utf-8")
        (folder / files.CONFIG).write_text(files.config_of(engine), encoding="utf-8")
        (folder / files.LINEAGE).write_text(json.dumps(origin, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
