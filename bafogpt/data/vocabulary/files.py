"""Reads a ``tokenizer.json`` to extend, and writes the extended one with its lineage.

Supported are tokenizers like those of Gemma, Mistral and Llama 2: BPE with ``▁`` for the space and byte fallback. The
extended file is the base's with entries appended to ``vocab`` and ``merges``; nothing else changes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core import digest
from bafogpt.core.errors import DataError, NotFoundError, first_line
from bafogpt.data.tokenizer import BEGIN_NAMES, END_NAMES, read_fast
from bafogpt.data.vocabulary.word_counts import SPACE, is_letters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
LINEAGE = "tokenizer.lineage.json"
LINEAGE_SCHEMA = "bafogpt.tokenizer.lineage/1"
COMPANION_FILES = ("special_tokens_map.json", "chat_template.jinja")
"""Other files of a tokenizer, copied along."""
PADDING = re.compile(r"<padding_\d+>")
"""Names of pieces that no text has."""
HINT = "--base FOLDER of a Gemma, Mistral or Llama 2 checkpoint"


@dataclass(frozen=True)
class LearnedPiece:
    """One learned piece."""

    id: int
    text: str
    merge: tuple[int, int]
    """The two tokens that it joins: of the base, or learned before."""
    constituents: tuple[int, ...]
    """The base's tokens for the same text."""
    count: int
    """How often the merge applied in the corpus when it was learned."""


@dataclass(frozen=True)
class Base:
    """A tokenizer that can be extended."""

    file: Path
    digest: str
    """``blake3:`` of the ``tokenizer.json``."""
    content: dict[str, Any]
    engine: FastTokenizer
    pieces: Sequence[str]
    """By id; empty for an id without a piece."""
    letters: Sequence[bool]
    """By id: whether the piece is letters, so that a new one may contain it."""

    @property
    def size(self) -> int:
        """The first free id."""
        return len(self.pieces)


def load(name: str) -> Base:
    """Read a ``tokenizer.json``, or that of a folder.

    Raises :class:`NotFoundError`, and :class:`DataError` for one that cannot be extended.
    """
    path = Path(name)
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{path} has no {TOKENIZER}" if path.is_dir() else f"no tokenizer at {path}", HINT)
    raw = file.read_bytes()
    try:
        content = json.loads(raw)
        model = content["model"]
        reason = _unfit(content, model)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a {TOKENIZER} ({first_line(error)})", f"head -c 200 {file}") from None
    if reason:  # before the library reads it: some of these make it panic
        raise DataError(f"{file}: {reason}", HINT)
    engine = read_fast(file)
    added = {each["id"]: each["content"] for each in content.get("added_tokens") or ()}
    by_id = {number: text for text, number in model["vocab"].items()} | added
    pieces = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    letters = [bool(text) and number not in added and is_letters(text) for number, text in enumerate(pieces)]
    return Base(file, digest.of_bytes(raw), content, engine, pieces, letters)


def _unfit(content: dict[str, Any], model: dict[str, Any]) -> str:
    """Why this tokenizer cannot be extended, or nothing."""
    if model.get("type") != "BPE":
        return f"a {model.get('type') or 'nameless'} model; only BPE can be continued"
    if not model.get("merges"):
        return "BPE without merges, so there is nothing to continue"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        return "its pieces carry a prefix, a suffix or dropout, which is not supported"
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if {"type": "Replace", "pattern": {"String": " "}, "content": SPACE} not in steps:
        return f"its text does not have '{SPACE}' for the space (byte-level BPE is not supported)"
    if len(steps) > 1:
        return "its normalizer does more than replace the space, which is not supported"
    splitting = content.get("pre_tokenizer") or {}
    if splitting and splitting.get("pattern") != {"String": " "}:
        return f"its pre-tokenizer ({splitting.get('type')}) splits text, which is not supported"
    return ""


def padding_names(base: Base, count: int) -> list[str]:
    """The next ``count`` names of padding pieces that the base does not have."""
    known, names = set(base.pieces), (f"<padding_{number}>" for number in itertools.count())
    return list(itertools.islice((name for name in names if name not in known), count))


def extended(base: Base, learned: Sequence[LearnedPiece], padding: int) -> dict[str, Any]:
    """The new ``tokenizer.json``: the base's with learned pieces, their merges and padding appended.

    An added token that is not in the base's vocabulary, as Gemma-3's ``<image_soft_token>``, is put into it: the
    ``tokenizers`` library ignores its id in the file and assigns the first one after the vocabulary.
    """
    model = base.content["model"]
    texts = [*base.pieces, *(piece.text for piece in learned)]
    spelled = isinstance(model["merges"][0], str)
    pairs = [[texts[first], texts[second]] for first, second in (piece.merge for piece in learned)]
    vocab = model["vocab"] | {each["content"]: each["id"] for each in base.content.get("added_tokens") or ()}
    vocab |= {piece.text: piece.id for piece in learned}
    vocab |= {name: number for number, name in enumerate(padding_names(base, padding), start=len(texts))}
    merges = [*model["merges"], *((" ".join(pair) for pair in pairs) if spelled else pairs)]
    return {**base.content, "model": {**model, "vocab": vocab, "merges": merges}}


def lineage(base: Base, learned: Sequence[LearnedPiece], made: str, facts: dict[str, Any]) -> str:
    """``tokenizer.lineage.json``: the base, the corpus, and one line for each new piece."""
    about = {
        "schema": LINEAGE_SCHEMA,
        "tokenizer": digest.of_bytes(made.encode()),
        "base": {"name": base.file.resolve().parent.name, "digest": base.digest, "size": base.size},
        **facts,
    }
    head = json.dumps(about, ensure_ascii=False, indent=1).removesuffix("\n}")
    pieces = (
        {"id": p.id, "piece": p.text, "merge": p.merge, "constituents": p.constituents, "count": p.count}
        for p in learned
    )
    lines = (json.dumps(piece, ensure_ascii=False) for piece in pieces)
    return f'{head},\n "pieces": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def companion_files(file: Path, engine: FastTokenizer) -> dict[str, str]:
    """The files beside a base's ``tokenizer.json``; a new ``tokenizer_config.json`` where it has none."""
    paths = [path for name in (CONFIG, *COMPANION_FILES) if (path := file.parent / name).is_file()]
    return {CONFIG: config_of(engine)} | {path.name: path.read_text(encoding="utf-8") for path in paths}


def config_of(engine: FastTokenizer) -> str:
    """A ``tokenizer_config.json`` with the begin, end and unknown tokens, found by their usual names."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, names in (("bos_token", BEGIN_NAMES), ("eos_token", END_NAMES), ("unk_token", ("<unk>",))):
        known = next((each for each in names if engine.token_to_id(each) is not None), None)
        if known is not None:
            config[key] = known
    return json.dumps(config, indent=2) + "\n"
