"""Compares tokenizers on the same text; the first one is the baseline.

Words are separated by white space. A line of the protected text has changed if its pieces differ from the baseline's. A
piece is unreachable if its own text is not tokenized as that piece. Tokenizers are ``tokenizer.json`` or SentencePiece
``.model`` files.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bafogpt.core.errors import DataError, NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.data import sources as text_sources
from bafogpt.data.tokenizer import read_fast
from bafogpt.data.vocabulary.sentencepiece_model import BYTES, open_model
from bafogpt.data.vocabulary.word_counts import SPACE, texts

BATCH_LINES = 2048
CONTEXTS = ("-", "9", ")")
UNKNOWN = "\u2603"
"""A character in no vocabulary: a snowman."""
NAMED = 20
"""Most words and pieces that a report lists."""


class TokenizerAdapter(ABC):
    """The common interface of both libraries."""

    name: str
    pieces: Sequence[str]
    """By id."""
    plain: Sequence[int]
    """Ids of pieces that are neither special nor bytes."""

    @abstractmethod
    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without special tokens."""

    @abstractmethod
    def encode_piece(self, piece: str) -> list[int]:
        """The ids of a piece's own text."""


@dataclass
class TextStats:
    """Statistics of one text."""

    lines: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    used: int = 0
    """Distinct pieces that occur."""
    used_new: int = 0
    """Those of them that the baseline lacks."""
    changed: int = 0
    """Lines whose pieces differ from the baseline's."""
    changed_words: list[str] = field(default_factory=list)
    """The words that changed, most frequent first."""

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / self.words

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_word": self.tokens_per_word, "bytes_per_token": self.bytes_per_token}


@dataclass
class TokenizerStats:
    """One tokenizer. ``new`` counts pieces that the baseline lacks.

    ``unreachable`` counts new pieces if the tokenizer extends the baseline, else all pieces.
    """

    name: str
    size: int
    new: int
    unreachable: int
    unreachable_pieces: list[str]
    """The first of them."""
    text: TextStats
    protected: TextStats | None

    def to_dict(self) -> dict[str, Any]:
        protected = self.protected.to_dict() if self.protected else None
        return {**asdict(self), "text": self.text.to_dict(), "protected": protected}


def report(
    tokenizers: Sequence[str],
    text: Sequence[str],
    protected: Sequence[str] = (),
    *,
    language: str = "zul",
    protect_language: str = "eng",
    settings: Settings | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[TokenizerStats]:
    """Statistics of each of ``tokenizers``, on the side in ``language`` of parallel text.

    Texts are held in memory. Raises :class:`NotFoundError` and :class:`DataError` for unusable tokenizers and text.
    """
    lines = read_lines(text, language, False, settings)
    others = read_lines(protected, protect_language, True, settings) if protected else []
    stats: list[TokenizerStats] = []
    first: TokenizerAdapter | None = None
    before: list[list[list[str]]] = []
    for path, name in zip(tokenizers, _names(tokenizers), strict=True):
        tokenizer = open_tokenizer(path, name)
        first = first or tokenizer
        known = set(first.pieces)
        new = [number for number in tokenizer.plain if tokenizer.pieces[number] not in known]
        missed = _unreachable(tokenizer, new if tokenizer is not first and _extends(tokenizer, first) else None)
        measured = [_measure(tokenizer, wanted, set(new)) for wanted in (lines, others)]
        for (text_stats, tokens), old in zip(measured, before, strict=False):
            _compare(text_stats, old, tokens)
        before = before or [tokens for _, tokens in measured]
        size = sum(1 for piece in tokenizer.pieces if piece)
        own, other = (text_stats for text_stats, _ in measured)
        stats.append(TokenizerStats(name, size, len(new), len(missed), missed[:NAMED], own, other if others else None))
        progress(1)
    return stats


def _unreachable(tokenizer: TokenizerAdapter, ids: Sequence[int] | None) -> list[str]:
    """Those pieces of ``ids`` (None: of all plain ones) whose text is not tokenized as that piece."""
    pieces = tokenizer.pieces
    checked = tokenizer.plain if ids is None else ids
    return [pieces[number] for number in checked if tokenizer.encode_piece(pieces[number]) != [number]]


def read_lines(sources: Sequence[str], language: str, replay: bool, settings: Settings | None = None) -> list[str]:
    """The lines of ``sources`` in ``language`` that are not empty. Raises :class:`DataError` where there is none."""
    files = (file for source in sources for file in text_sources.find(source, settings))
    found = (text.splitlines() for file in files for text in texts(file, language, replay=replay))
    lines = [line for line in itertools.chain.from_iterable(found) if line.strip()]
    if not lines:
        flag = "--protect-language" if replay else "--language"
        raise DataError(f"{', '.join(sources)}: no text in '{language}'", f"{flag} CODE, as the records have it")
    return lines


def _measure(tokenizer: TokenizerAdapter, lines: Sequence[str], new: set[int]) -> tuple[TextStats, list[list[str]]]:
    """Statistics of ``lines``, and the pieces of each."""
    ids = [
        each
        for start in range(0, len(lines), BATCH_LINES)
        for each in tokenizer.encode(lines[start : start + BATCH_LINES])
    ]
    seen = set(itertools.chain.from_iterable(ids))
    stats = TextStats(
        lines=len(lines),
        words=sum(len(line.split()) for line in lines),
        bytes=sum(len(line.encode()) for line in lines),
        tokens=sum(map(len, ids)),
        used=len(seen),
        used_new=len(seen & new),
    )
    return stats, [[tokenizer.pieces[number] for number in each] for each in ids]


def _compare(cost: TextStats, before: Sequence[list[str]], after: Sequence[list[str]]) -> None:
    """Count the lines whose pieces changed, and list the words."""
    words: Counter[str] = Counter()
    for old, new in zip(before, after, strict=True):
        if old != new:
            cost.changed += 1
            kept = set(_words(old))
            words.update("".join(word) for word in _words(new) if word not in kept)
    cost.changed_words = [word.strip(SPACE) for word, _ in words.most_common(NAMED)]


def _words(pieces: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """``pieces`` grouped by word."""
    word: list[str] = []
    for piece in pieces:
        if piece.startswith(SPACE) and word:
            yield tuple(word)
            word = []
        word.append(piece)
    yield tuple(word)


def _extends(tokenizer: TokenizerAdapter, first: TokenizerAdapter) -> bool:
    """Whether the ids of ``first`` mean the same in ``tokenizer``; a few may be spelled otherwise (the tab)."""
    same = sum(one == other for one, other in zip(tokenizer.pieces, first.pieces, strict=False))
    return same >= 0.99 * len(first.pieces)


def _names(paths: Sequence[str]) -> list[str]:
    """The folder of a ``tokenizer.json``, else the file's name without suffix; the whole path where two are equal."""
    short = []
    for each in paths:
        path = Path(each)
        folder = path.resolve().name if path.is_dir() else path.resolve().parent.name
        short.append(folder if path.is_dir() or path.name == "tokenizer.json" else path.name.rpartition(".")[0])
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def open_tokenizer(path: str, name: str) -> TokenizerAdapter:
    """A ``tokenizer.json``, a folder with one, or a SentencePiece ``.model``.

    Raises :class:`NotFoundError`, or :class:`DataError` for what is neither or needs a package that is not there.
    """
    where = Path(path)
    file = where / "tokenizer.json" if where.is_dir() else where
    if not file.is_file():
        raise NotFoundError(f"no tokenizer at {path}", "name a tokenizer.json, a folder with one, or a .model file")
    return _SentencePiece(file, name) if file.suffix == ".model" else _Json(file, name)


class _Json(TokenizerAdapter):
    def __init__(self, file: Path, name: str) -> None:
        self._engine = read_fast(file)
        self.name = name
        vocab: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        by_id = {number: piece for piece, number in vocab.items()}
        self.pieces = [by_id.get(number, "") for number in range(max(by_id) + 1)]
        added = set(self._engine.get_added_tokens_decoder())
        left_out = {"", *BYTES}
        self.plain = [n for n, piece in enumerate(self.pieces) if n not in added and piece not in left_out]

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._engine.encode_batch_fast(list(lines), add_special_tokens=False)]

    def encode_piece(self, piece: str) -> list[int]:
        return list(self._engine.encode(piece, add_special_tokens=False).ids)


class _SentencePiece(TokenizerAdapter):
    def __init__(self, file: Path, name: str) -> None:
        model = self._model = open_model(file.read_bytes(), str(file))
        self.name = name
        self.pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
        self._puts_space = str(model.encode("-", out_type=str)[0]).startswith(SPACE)
        odd = (model.is_byte, model.is_control, model.is_unknown, model.is_unused)
        self.plain = [number for number in range(len(self.pieces)) if not any(test(number) for test in odd)]

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return list(self._model.encode(list(lines), out_type=int))

    def encode_piece(self, piece: str) -> list[int]:
        """By default models put a space before any text; then a piece without one is searched after other text."""
        text = piece.replace(SPACE, " ")
        if self._puts_space and piece == SPACE:
            return self.encode([UNKNOWN])[0][:1]
        if self._puts_space and not text.startswith(" "):
            number = self._model.piece_to_id(piece)
            for context in CONTEXTS:
                before, after = self.encode([context, context + text])
                if after == [*before, number]:
                    return [number]
        return self.encode([text[1:] if self._puts_space and text.startswith(" ") else text])[0]
