"""Extends a BPE tokenizer with merges for another language (continued BPE).

The base tokenizes the corpus, merges are learned over its tokens, and they are appended after all of the base's. The
new tokenizer therefore tokenizes any text as the base does and then applies the new merges: text without a learned pair
keeps its tokens, a piece never crosses a word, and every new piece can occur. A pair is refused if it spells an
existing piece, if the protected text contains it (``protected_merges``), or if its text on its own has other tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core import terms
from bafogpt.core.errors import DataError, UsageError
from bafogpt.core.files import new_folder, require_new
from bafogpt.core.settings import Settings
from bafogpt.data.vocabulary import files, protected_merges, sentencepiece_model, word_counts
from bafogpt.data.vocabulary.bpe_merges import Pair, PairIndex, apply
from bafogpt.data.vocabulary.files import Base, LearnedPiece
from bafogpt.data.vocabulary.sentencepiece_model import UNUSUAL, ModelCheck
from bafogpt.data.vocabulary.word_counts import Unit, WordCounts

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MULTIPLE = 64
"""The vocabulary's size is a multiple of this, for fast matrix kernels."""
MIN_PAIR_COUNT = 2
"""A pair must occur this often to become a piece."""
PROGRESS_EVERY = 100

Advance = Callable[[int], None]
Stage = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""(task, amount or None, unit) → context manager that yields a progress callback."""


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """How a tokenizer is extended. Raises :class:`UsageError`."""

    pieces: int = 40_000
    """New pieces; rounded up so that the vocabulary is a multiple of 64."""
    language: str = "zul"
    """Language to learn: this side of parallel text, and documents that name no other language."""
    protect_language: str = "eng"
    """Language of the protected text."""
    pad: bool = False
    """Whether the multiple of 64 is reached with padding pieces rather than more learned ones."""

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise UsageError(f"--pieces {self.pieces} is not a number of pieces", "--pieces 40000")
        if self.language == self.protect_language:
            raise UsageError(f"'{self.language}' is learned and protected at once", "--protect-language eng")


@dataclass
class ExtendReport:
    """What was made; ``refused`` counts pairs by reason."""

    out: str
    base_size: int
    size: int
    learned: int
    padding: int = 0
    documents: int = 0
    words: int = 0
    distinct_words: int = 0
    units: int = 0
    protected_words: int = 0
    forbidden_pairs: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    lowest_count: int = 0
    """How often the last learned pair occurred."""
    tokenizer_model: ModelCheck = field(default_factory=ModelCheck)
    """Whether a SentencePiece ``tokenizer.model`` was written, and what it was compared on."""
    seconds: float = 0.0


def extend(
    base: str,
    corpus: Sequence[str],
    protected: Sequence[str],
    out: Path,
    *,
    options: ExtendOptions | None = None,
    settings: Settings | None = None,
    processes: int | None = None,
    stage: Stage = lambda *_: contextlib.nullcontext(lambda _: None),
) -> ExtendReport:
    """Extend the tokenizer ``base`` with pieces learned from ``corpus``, and write it to the new folder ``out``.

    Text of ``protected`` keeps its tokens, except words that the corpus uses more. Equal inputs give equal files.
    Raises :class:`~bafogpt.core.errors.ConflictError` where ``out`` exists, :class:`DataError` for too little text, and
    what :func:`files.load` and reading raise; ``out`` is not created then.
    """
    options, began = options or ExtendOptions(), time.monotonic()
    require_new(out)
    read = _read(corpus, options.language, False, settings, processes, stage)
    kept = _read(protected, options.protect_language, True, settings, processes, stage) if protected else WordCounts()
    with stage("tokenizing words", None, ""):
        loaded = files.load(base)
        units = word_counts.units(loaded.engine, read.counts.items(), loaded.letters)
        guarded = protected_merges.protected_words(kept.counts, read.counts)
        forbidden = protected_merges.forbidden_pairs(loaded.engine, guarded, loaded.letters)
    missing = -(loaded.size + options.pieces) % MULTIPLE
    wanted, padding = (options.pieces, missing) if options.pad else (options.pieces + missing, 0)
    learner = MergeLearner(loaded, units, forbidden)
    with stage("learning", wanted, "pieces") as advance:
        learner.learn(wanted, advance)
    report = ExtendReport(str(out), loaded.size, loaded.size + wanted + padding, wanted, padding)
    report.documents, report.words, report.distinct_words = read.documents, read.counts.total(), len(read.counts)
    report.units, report.protected_words, report.forbidden_pairs = len(units), len(guarded), len(forbidden)
    report.refused, report.lowest_count = dict(learner.refused), learner.learned[-1].count
    with stage("writing and checking", None, ""):
        facts = {"settings": asdict(options), "corpus": _facts(read), "protect": _facts(kept)}
        sample = itertools.chain(UNUSUAL, read.sample, kept.sample, read.counts, kept.counts)
        report.tokenizer_model = _write(out, loaded, learner.learned, padding, facts, sample)
    return replace(report, seconds=time.monotonic() - began)


class MergeLearner:
    """Learns merges, one after another, over the units of a corpus."""

    def __init__(self, base: Base, units: Counter[Unit], forbidden: set[Pair]) -> None:
        self.learned: list[LearnedPiece] = []
        self.refused: Counter[str] = Counter()
        """Pairs that did not become pieces, by reason."""
        self._base = base
        self._index = PairIndex(units, forbidden)
        self._texts = list(base.pieces)
        self._known = set(base.pieces)
        self._merges: dict[Pair, int] = {}

    def learn(self, wanted: int, advance: Advance) -> None:
        """Learn ``wanted`` pieces. Raises :class:`DataError` where too few pairs occur often enough."""
        while len(self.learned) < wanted:
            best = self._index.most_frequent()
            if best is None or best[1] < MIN_PAIR_COUNT:
                raise _too_few(len(self.learned), wanted, self._base.size)
            pair, number = best
            piece = self._piece(pair, number)
            if piece is None:
                self._index.forbid(pair)
                continue
            self._index.merge(pair, piece.id)
            self._merges[pair] = piece.id
            self._texts.append(piece.text)
            self._known.add(piece.text)
            self.learned.append(piece)
            if len(self.learned) % PROGRESS_EVERY == 0:
                advance(PROGRESS_EVERY)

    def _piece(self, pair: Pair, number: int) -> LearnedPiece | None:
        """The piece that ``pair`` becomes; None for one that is refused.

        In plain BPE a text whose borders no merge crosses has the same tokens alone as within its word. The second
        reason is checked because a base may have tokens with rules of their own.
        """
        text = self._texts[pair[0]] + self._texts[pair[1]]
        if text in self._known:
            self.refused["spells an existing piece"] += 1
            return None
        constituents = (*self._constituents(pair[0]), *self._constituents(pair[1]))
        alone = self._base.engine.encode(text, add_special_tokens=False).ids
        if tuple(alone) != constituents or apply(alone, self._merges) != [*pair]:
            self.refused["has other tokens on its own"] += 1
            return None
        return LearnedPiece(len(self._texts), text, pair, constituents, number)

    def _constituents(self, token: int) -> tuple[int, ...]:
        learned = token - self._base.size
        return (token,) if learned < 0 else self.learned[learned].constituents


def unreachable(engine: FastTokenizer, pieces: Sequence[tuple[int, str]]) -> list[str]:
    """Those of ``pieces`` (id, text) whose text is not tokenized as that id."""
    encoded = engine.encode_batch_fast([text for _, text in pieces], add_special_tokens=False)
    return [text for (number, text), each in zip(pieces, encoded, strict=True) if each.ids != [number]]


def _read(
    sources: Sequence[str],
    language: str,
    replay: bool,
    settings: Settings | None,
    processes: int | None,
    stage: Stage,
) -> WordCounts:
    with stage(f"reading '{language}'", None, "files") as advance:
        read = word_counts.count(
            sources, language, replay=replay, settings=settings, processes=processes, progress=advance
        )
    if not read.counts:
        flag = "--protect-language" if replay else "--language"
        raise DataError(f"{', '.join(sources)}: no text in '{language}'", f"{flag} CODE, as the records' 'lang' has it")
    return read


def _too_few(there: int, wanted: int, base: int) -> DataError:
    most = (base + there) // MULTIPLE * MULTIPLE - base
    hint = f"--pieces {most}, or add text" if most > 0 else "add text"
    return DataError(
        f"the corpus gives {there:,} pieces, not {wanted:,}: no other pair occurs {MIN_PAIR_COUNT} times", hint
    )


def _facts(read: WordCounts) -> dict[str, Any]:
    return {
        "documents": read.documents,
        "words": read.counts.total(),
        "distinct_words": len(read.counts),
        "files": read.digests,
    }


def _write(
    out: Path, base: Base, learned: Sequence[LearnedPiece], padding: int, facts: dict[str, Any], sample: Iterable[str]
) -> ModelCheck:
    """Write the folder, after checking that every new piece is tokenized as itself and every old one keeps its id."""
    from tokenizers import Tokenizer as FastTokenizer

    made = json.dumps(files.extended(base, learned, padding), ensure_ascii=False, indent=2)
    engine = FastTokenizer.from_str(made)
    missed = unreachable(engine, [(piece.id, piece.text) for piece in learned])
    assert not missed, f"{len(missed)} pieces are not tokenized as themselves: {missed[:5]}"
    assert engine.get_vocab_size(with_added_tokens=True) == base.size + len(learned) + padding
    moved = [text for number, text in enumerate(base.pieces) if text and engine.id_to_token(number) != text]
    assert not moved, f"{len(moved)} of the base's tokens have other ids: {moved[:5]}"
    with new_folder(out) as folder:
        (folder / files.TOKENIZER).write_text(made, encoding="utf-8")
        (folder / files.LINEAGE).write_text(files.lineage(base, learned, made, facts), encoding="utf-8")
        for name, text in files.companion_files(base.file, engine).items():
            (folder / name).write_text(text, encoding="utf-8")
        for path in terms.files_in(base.file.parent):
            shutil.copyfile(path, folder / path.name)
        engine.encode_special_tokens = True
        return sentencepiece_model.write(folder, base, learned, padding, engine, sample)
