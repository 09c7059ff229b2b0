"""What tokenizers are worth: the same text in each, side by side. The first one is what the others are held against.

A word is what white space surrounds. A line of the protected text has changed where a tokenizer cuts it into other
pieces than the first one does. A piece is unreachable when its own text is not cut into it: no text holds it then, or
only by chance of what is around it. Tokenizers are ``tokenizer.json`` or SentencePiece ``.model`` files.
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
from bafogpt.data.vocabulary.word_counts import SPACE, texts

BATCH_LINES = 2048
CONTEXTS = ("-", "9", ")")
UNKNOWN = "\u2603"
"""A character that no piece holds: a snowman."""
NAMED = 20
"""Changed words that a report names at most."""


class TokenizerAdapter(ABC):
    """A tokenizer of whatever kind."""

    name: str
    pieces: Sequence[str]
    """By id."""
    plain: Sequence[int]
    """The ids that text may have: neither special nor bytes."""

    @abstractmethod
    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, with nothing added."""

    @abstractmethod
    def encode_piece(self, piece: str) -> list[int]:
        """The ids of a piece's own text."""


@dataclass
class TextStats:
    """What one text costs."""

    lines: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    used: int = 0
    """Different pieces that occur."""
    used_new: int = 0
    """Different ones among them that the first tokenizer lacks."""
    changed: int = 0
    """Lines that the first tokenizer cuts in another way."""
    changed_words: list[str] = field(default_factory=list)
    """The words in them that changed, most frequent first."""

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / self.words

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the two ratios."""
        return {**asdict(self), "tokens_per_word": self.tokens_per_word, "bytes_per_token": self.bytes_per_token}


@dataclass
class TokenizerStats:
    """One tokenizer. ``new`` are pieces that the first one lacks.

    ``unreachable`` are among the new ones where the tokenizer continues the first, among all its pieces where not.
    """

    name: str
    size: int
    new: int
    unreachable: int
    unreachable_pieces: list[str]
    """Some of them."""
    text: TextStats
    protected: TextStats | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
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
    progress: Callable[[int], None] | None = None,
) -> list[TokenizerStats]:
    """A row for each of ``tokenizers``; ``progress`` is told of each that is done.

    Of parallel text the side in ``language`` (``protect_language`` for ``protected``) is taken. Texts are held in
    memory. Raises :class:`NotFoundError` and :class:`DataError` for tokenizers and text that cannot be used.
    """
    lines = read_lines(text, language, False, settings)
    others = read_lines(protected, protect_language, True, settings) if protected else []
    rows: list[TokenizerStats] = []
    first: TokenizerAdapter | None = None
    before: list[list[list[str]]] = []
    names = _names(tokenizers)
    for path, name in zip(tokenizers, names, strict=True):
        tokenizer = open_tokenizer(path, name)
        first = first or tokenizer
        known = set(first.pieces)
        new = [number for number in tokenizer.plain if tokenizer.pieces[number] not in known]
        checked = new if tokenizer is not first and _extends(tokenizer, first) else tokenizer.plain
        missed = [
            tokenizer.pieces[number]
            for number in checked
            if tokenizer.encode_piece(tokenizer.pieces[number]) != [number]
        ]
        costs = []
        for position, wanted in enumerate((lines, others)):
            cost, encode = _cost(tokenizer, wanted, set(new))
            if tokenizer is first:
                before.append(encode)
            else:
                _compare(cost, before[position], encode)
            costs.append(cost)
        size = sum(1 for piece in tokenizer.pieces if piece)
        rows.append(
            TokenizerStats(name, size, len(new), len(missed), missed[:NAMED], costs[0], costs[1] if others else None)
        )
        if progress is not None:
            progress(1)
    return rows


def read_lines(sources: Sequence[str], language: str, replay: bool, settings: Settings | None = None) -> list[str]:
    """The lines of ``sources`` in ``language`` that are not empty. Raises :class:`DataError` where there is none."""
    files = (file for source in sources for file in text_sources.find(source, settings))
    found = (text.splitlines() for file in files for text in texts(file, language, replay=replay))
    lines = [line for line in itertools.chain.from_iterable(found) if line.strip()]
    if not lines:
        flag = "--protect-language" if replay else "--language"
        raise DataError(f"{', '.join(sources)}: no text in '{language}'", f"{flag} CODE, as the records have it")
    return lines


def _cost(tokenizer: TokenizerAdapter, lines: Sequence[str], new: set[int]) -> tuple[TextStats, list[list[str]]]:
    """What ``lines`` cost, and the pieces of each."""
    cost = TextStats(lines=len(lines))
    seen: set[int] = set()
    encode: list[list[str]] = []
    for begin in range(0, len(lines), BATCH_LINES):
        for ids in tokenizer.encode(lines[begin : begin + BATCH_LINES]):
            cost.tokens += len(ids)
            seen.update(ids)
            encode.append([tokenizer.pieces[number] for number in ids])
    cost.words = sum(len(line.split()) for line in lines)
    cost.bytes = sum(len(line.encode()) for line in lines)
    cost.used, cost.used_new = len(seen), len(seen & new)
    return cost, encode


def _compare(cost: TextStats, before: Sequence[list[str]], after: Sequence[list[str]]) -> None:
    """Count the lines that are cut in another way, and name the words that are."""
    words: Counter[str] = Counter()
    for old, new in zip(before, after, strict=True):
        if old != new:
            cost.changed += 1
            kept = set(_words(old))
            words.update("".join(word) for word in _words(new) if word not in kept)
    cost.changed_words = [word.strip(SPACE) for word, _ in words.most_common(NAMED)]


def _words(pieces: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """``pieces``, those of one word together."""
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
    """Short names: the folder of a ``tokenizer.json``, else the file without its ending; in full where two agree."""
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
        from tokenizers import Tokenizer as FastTokenizer

        try:
            self._engine = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{file}: not a tokenizer.json ({error})", f"head -c 200 {file}") from None
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True
        self.name = name
        vocab: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        by_id = {number: piece for piece, number in vocab.items()}
        self.pieces = [by_id.get(number, "") for number in range(max(by_id) + 1)]
        added = set(self._engine.get_added_tokens_decoder())
        self.plain = [
            number for number, piece in enumerate(self.pieces) if piece and number not in added and not _is_byte(piece)
        ]

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._engine.encode_batch_fast(list(lines), add_special_tokens=False)]

    def encode_piece(self, piece: str) -> list[int]:
        ids: list[int] = self._engine.encode(piece, add_special_tokens=False).ids
        return ids


class _SentencePiece(TokenizerAdapter):
    def __init__(self, file: Path, name: str) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise DataError(
                f"{file}: the sentencepiece package is not installed", "pip install sentencepiece"
            ) from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError) as error:
            raise DataError(f"{file}: not a SentencePiece model ({error})", f"head -c 100 {file}") from None
        self.name = name
        model = self._model
        self.pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
        self._puts_space = str(model.encode("-", out_type=str)[0]).startswith(SPACE)
        odd = (model.is_byte, model.is_control, model.is_unknown, model.is_unused)
        self.plain = [number for number in range(len(self.pieces)) if not any(test(number) for test in odd)]

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._model.encode(list(lines), out_type=int)
        return ids

    def encode_piece(self, piece: str) -> list[int]:
        """Models made by default put a space before any text; a piece without one is looked for after other text."""
        text = piece.replace(SPACE, " ")
        if not self._puts_space:
            return self._cut(text)
        if piece == SPACE:
            return self._cut(UNKNOWN)[:1]
        if text.startswith(" "):
            return self._cut(text[1:])
        number = self._model.piece_to_id(piece)
        for context in CONTEXTS:
            before, after = self._cut(context), self._cut(context + text)
            if after == [*before, number]:
                return [number]
        return self._cut(text)

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, out_type=int)
        return ids


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
