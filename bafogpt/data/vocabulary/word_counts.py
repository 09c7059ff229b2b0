"""What there is to learn from: the distinct words of a corpus, as the base tokenizer cuts them.

A *word* is a run of characters without white space, with the one space before it where there is one; Gemma's pieces
hold a space at their beginning only, so a word is cut the same alone as within its text. A *unit* is a run of
neighbouring tokens of one word that are letters: what new pieces are made within. Digits, punctuation and bytes are
in no unit, and so stay as the base has them. Memory grows with distinct words, not with text.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING

from bafogpt.core.settings import Settings
from bafogpt.data import sources as text_sources
from bafogpt.data.curriculum import REPLAY
from bafogpt.data.documents import TextFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

SPACE = "▁"
"""How pieces spell the space (U+2581)."""
BATCH = 8192
"""Words that are handed to the tokenizer at a time."""
SAMPLE = 200
"""Texts of each file that are kept whole in :attr:`WordCounts.sample`."""
SAMPLE_CHARACTERS = 4096
"""Characters of such a text."""

Progress = Callable[[int], None]
Unit = tuple[int, ...]

_WORD = re.compile(r"(?:(?<!\s) )?\S+")


@dataclass
class WordCounts:
    """The distinct words of some files, and what was read to find them."""

    counts: Counter[str] = field(default_factory=Counter)
    """A word, with the space before it where it has one, and how often it occurs."""
    documents: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    """Each file's name, and the digest of its content."""
    sample: list[str] = field(default_factory=list)
    """The beginnings of each file's first texts, with their white space."""

    def add(self, other: WordCounts) -> None:
        """Take in what another process counted."""
        self.counts.update(other.counts)
        self.documents += other.documents
        self.digests.update(other.digests)
        self.sample += other.sample


def count(
    sources: Sequence[str],
    language: str,
    *,
    replay: bool,
    settings: Settings | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> WordCounts:
    """The words of ``sources`` in ``language``: one side of parallel text, and documents that do not name another.

    Replay is English by definition, so without ``replay`` documents of that stage that name no language are left
    out. Files are read by ``processes`` at once (default: one for each core, where there is more than one file);
    ``progress`` is told of files. Raises what :func:`bafogpt.data.sources.find` and reading raise.
    """
    tasks = [
        (source, index, language, replay, settings)
        for source in sources
        for index in range(len(text_sources.find(source, settings)))
    ]
    workers = min(processes or os.cpu_count() or 1, len(tasks))
    words = WordCounts()
    for part in _counted(tasks, workers):
        words.add(part)
        if progress is not None:
            progress(1)
    return words


_Task = tuple[str, int, str, bool, Settings | None]


def _counted(tasks: Sequence[_Task], workers: int) -> Iterator[WordCounts]:
    """Each file's words in the order of the files, so that nothing depends on which process was first."""
    if workers <= 1:
        yield from map(_count_file, tasks)
        return
    with pool(workers) as processes:
        yield from processes.map(_count_file, tasks)


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes of their own, not forked from one that may have threads, which end with this one however it ends."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _count_file(task: _Task) -> WordCounts:
    source, index, language, replay, settings = task
    file = text_sources.find(source, settings)[index]
    words = WordCounts()
    for text in texts(file, language, replay=replay):
        words.counts.update(_WORD.findall(text))
        if len(words.sample) < SAMPLE:
            words.sample.append(text[:SAMPLE_CHARACTERS])
        words.documents += 1
    words.digests[file.name] = file.digest
    return words


def texts(file: TextFile, language: str, *, replay: bool) -> Iterator[str]:
    """The texts of a file that are in ``language``; replay that names no language only with ``replay``."""
    for document in file.read(REPLAY if replay else "document", language):
        if replay or document.stage != REPLAY or document.lang == language:
            yield document.text


def units(engine: FastTokenizer, words: Iterable[tuple[str, int]], letters: Sequence[bool]) -> Counter[Unit]:
    """How often each unit of two tokens or more occurs in ``words`` (word, count); ``letters`` is by token id."""
    found: Counter[Unit] = Counter()
    waiting = iter(words)
    while batch := list(itertools.islice(waiting, BATCH)):
        encoded = engine.encode_batch_fast([word for word, _ in batch], add_special_tokens=False)
        for (_, number), encoding in zip(batch, encoded, strict=True):
            for is_letters, run in itertools.groupby(encoding.ids, key=letters.__getitem__):
                unit = tuple(run) if is_letters else ()
                if len(unit) > 1:
                    found[unit] += number
    return found


def is_letters(piece: str) -> bool:
    """Whether a piece is letters (with their marks), perhaps after a space, or that space alone."""
    return all(unicodedata.category(character)[0] in "LM" for character in piece.removeprefix(SPACE))
