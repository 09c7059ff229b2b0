"""Continued BPE: the base's own merges first, then those that another language needs.

The corpus is cut by the base, merges are learned over what that leaves, and they are appended after all of the base's.
So the new tokenizer cuts any text as the base does and then joins what it learned: text that holds no learned pair is
cut as before, a piece crosses no word, and no new piece waits on a merge that cannot happen. A pair is refused where it
spells a piece that is there already, where the protected text has it (``protect``), and where its text alone would be
cut in another way: then its piece could appear within words but not be written down.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
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
"""The size of the whole vocabulary is a multiple of this: matrix kernels are faster then."""
MIN_PAIR_COUNT = 2
"""A pair that occurs fewer times than this is not a pattern."""
PROGRESS_EVERY = 100

Advance = Callable[[int], None]
Stage = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""(what is being done, how much there is or None, its unit) to something that is told of each part done."""


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """How a tokenizer is continued. Raises :class:`UsageError` for what makes no sense."""

    pieces: int = 40_000
    """New pieces; rounded up so that the whole is a multiple of 64."""
    language: str = "zul"
    """What is learned: of parallel text this side, and no document that names another language."""
    protect_language: str = "eng"
    """The same for what is protected."""
    pad: bool = False
    """Whether the multiple of 64 is reached by padding pieces, which no text has, in place of more real ones."""

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise UsageError(f"--pieces {self.pieces} is not a number of pieces", "--pieces 40000")
        if self.language == self.protect_language:
            raise UsageError(f"'{self.language}' is learned and protected at once", "--protect-language eng")


@dataclass
class ExtendReport:
    """What was made. Seconds and counts; ``refused`` are pairs, by reason."""

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
    """How often the last merge applied when it was learned."""
    tokenizer_model: ModelCheck = field(default_factory=ModelCheck)
    """Whether a SentencePiece ``tokenizer.model`` was written, and what it was compared on."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def extend(
    base: str,
    corpus: Sequence[str],
    protected: Sequence[str],
    out: Path,
    *,
    options: ExtendOptions | None = None,
    settings: Settings | None = None,
    processes: int | None = None,
    stage: Stage | None = None,
) -> ExtendReport:
    """Continue the tokenizer ``base`` with pieces learned from ``corpus``, and write it to the new folder ``out``.

    Text of ``protected`` keeps its tokens, but for words that the corpus uses more. Equal inputs give equal files.
    Memory grows with the distinct words. Raises :class:`ConflictError` where ``out`` is there already,
    :class:`DataError` where there is no text in the language or too little for so many pieces, and what
    :func:`files.load` and reading raise; ``out`` does not appear then.
    """
    options = options or ExtendOptions()
    stage = stage or (lambda *_: contextlib.nullcontext(lambda _: None))
    began = time.monotonic()
    require_new(out)
    read = _read(corpus, options.language, False, settings, processes, stage)
    kept = _read(protected, options.protect_language, True, settings, processes, stage) if protected else WordCounts()
    with stage("loading the base", None, ""):
        loaded = files.load(base)
    with stage("cutting words", None, ""):
        found = word_counts.units(loaded.engine, read.counts.items(), loaded.letters)
        guarded = protected_merges.protected_words(kept.counts, read.counts)
        forbidden = protected_merges.forbidden_pairs(loaded.engine, guarded, loaded.letters)
    padding = -(loaded.size + options.pieces) % MULTIPLE
    wanted = options.pieces + (0 if options.pad else padding)
    padding = padding if options.pad else 0
    learner = Learner(loaded, found, forbidden)
    with stage("learning", wanted, "pieces") as advance:
        learner.learn(wanted, advance)
    if len(learner.learned) < wanted:
        raise _too_few(len(learner.learned), wanted, loaded.size)
    report = ExtendReport(str(out), loaded.size, loaded.size + wanted + padding, wanted, padding)
    report.documents, report.words, report.distinct_words = read.documents, read.counts.total(), len(read.counts)
    report.units, report.protected_words, report.forbidden_pairs = len(found), len(guarded), len(forbidden)
    report.refused, report.lowest_count = dict(learner.refused), learner.learned[-1].count
    facts = {"settings": asdict(options), "corpus": _facts(read), "protect": _facts(kept)}
    with stage("writing and checking", None, ""):
        sample = itertools.chain(UNUSUAL, read.sample, kept.sample, read.counts, kept.counts)
        report.tokenizer_model = _write(out, loaded, learner.learned, padding, facts, sample)
    report.seconds = time.monotonic() - began
    return report


class Learner:
    """Merges, one after the other, over the units of a corpus."""

    def __init__(self, base: Base, units: Counter[Unit], forbidden: set[Pair]) -> None:
        self.learned: list[LearnedPiece] = []
        self.refused: Counter[str] = Counter()
        """Why pairs that occur often enough did not become pieces."""
        self._base = base
        self._index = PairIndex(units, forbidden)
        self._texts = list(base.pieces)
        self._known = set(base.pieces)
        self._merges: dict[Pair, int] = {}

    def learn(self, wanted: int, advance: Advance) -> None:
        """Learn until there are ``wanted`` pieces, or no pair is left that occurs often enough."""
        while len(self.learned) < wanted:
            best = self._index.most_frequent()
            if best is None or best[1] < MIN_PAIR_COUNT:
                break
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
        """The piece that ``pair`` would become, or None for one that may not be.

        In plain BPE a text whose borders no merge crosses is cut the same alone as within its word, so the second
        reason is not met there; it is looked at all the same, because a base may bring tokens with rules of their own.
        """
        text = self._texts[pair[0]] + self._texts[pair[1]]
        if text in self._known:
            self.refused["spells a piece that is there"] += 1
            return None
        constituents = (*self._constituents(pair[0]), *self._constituents(pair[1]))
        alone = self._base.engine.encode(text, add_special_tokens=False).ids
        if tuple(alone) != constituents or apply(alone, self._merges) != [*pair]:
            self.refused["cut in another way when alone"] += 1
            return None
        return LearnedPiece(len(self._texts), text, pair, constituents, number)

    def _constituents(self, token: int) -> tuple[int, ...]:
        learned = token - self._base.size
        return (token,) if learned < 0 else self.learned[learned].constituents


def unreachable(engine: FastTokenizer, pieces: Sequence[tuple[int, str]]) -> list[str]:
    """Those of ``pieces`` (id, text) whose text is not cut into just that id."""
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
    """The error that says how many pieces there were, with the largest number that would do."""
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
    """Write the folder, after the ``tokenizers`` library tokenized every new piece as itself."""
    from tokenizers import Tokenizer as FastTokenizer

    made = files.dumped(files.continued(base, learned, padding))
    engine = FastTokenizer.from_str(made)
    missed = unreachable(engine, [(piece.id, piece.text) for piece in learned])
    assert not missed, f"{len(missed)} pieces are not cut into themselves: {missed[:5]}"
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
