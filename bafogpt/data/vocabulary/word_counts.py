"""Counts the distinct words of a corpus, as the base tokenizes them.

A *word* is a run of characters without white space, with the space before it if there is one; Gemma's pieces have a
space only at their beginning, so a word has the same tokens alone as within its text. A *unit* is a run of letter
tokens within a word; new pieces are learned within units. Digits, punctuation and bytes are in no unit and stay as in
the base. Memory grows with the number of distinct words, not with the text.
"""

from __future__ import annotations

import contextlib
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
"""The space in pieces (U+2581)."""
BATCH = 8192
"""Words that are tokenized at a time."""
SAMPLE = 200
"""Texts of each file in :attr:`WordCounts.sample`."""
SAMPLE_CHARACTERS = 4096
"""Most characters of such a text."""

Progress = Callable[[int], None]
Unit = tuple[int, ...]

_WORD = re.compile(r"(?:(?<!\s) )?\S+")


@dataclass
class WordCounts:
    """The distinct words of some files, and which files were read."""

    counts: Counter[str] = field(default_factory=Counter)
    """Each word, with the space before it, and how often it occurs."""
    documents: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    """File name → digest of its content."""
    sample: list[str] = field(default_factory=list)
    """The beginnings of each file's first texts."""

    def add(self, other: WordCounts) -> None:
        """Add the counts of another process."""
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
    progress: Progress = lambda _: None,
) -> WordCounts:
    """Count the words of ``sources`` in ``language``: one side of parallel text, and documents that name no other.

    Replay is English, so without ``replay`` documents of that stage that name no language are left out. ``processes``
    (default: one per core) read files in parallel; ``progress`` counts files. Raises what reading raises.
    """
    tasks = [
        (source, index, language, replay, settings)
        for source in sources
        for index in range(len(text_sources.find(source, settings)))
    ]
    workers = min(processes or os.cpu_count() or 1, len(tasks))
    words = WordCounts()
    with contextlib.ExitStack() as stack:
        mapped = map if workers <= 1 else stack.enter_context(pool(workers)).map
        for part in mapped(_count_file, tasks):  # in the order of the files, so that the result is deterministic
            words.add(part)
            progress(1)
    return words


_Task = tuple[str, int, str, bool, Settings | None]


def pool(workers: int) -> ProcessPoolExecutor:
    """A pool of spawned processes (this one may have threads) that end when this process ends, however it ends."""
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
    """The texts of a file in ``language``; replay that names no language only with ``replay``."""
    for document in file.read(REPLAY if replay else "document", language):
        if replay or document.stage != REPLAY or document.lang == language:
            yield document.text


def units(engine: FastTokenizer, words: Iterable[tuple[str, int]], letters: Sequence[bool]) -> Counter[Unit]:
    """How often each unit of at least two tokens occurs in ``words`` (word, count); ``letters`` is by token id."""
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
    """Whether a piece is only letters and their marks after an optional space."""
    return all(unicodedata.category(character)[0] in "LM" for character in piece.removeprefix(SPACE))
