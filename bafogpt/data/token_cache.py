"""Tokenised documents on a local disk, one file a stage, written and read in order.

The curriculum's order is known only after every source has been read, and a corpus need not fit in memory. Tokens are
cached rather than text: they are smaller, and the second pass has nothing left to compute.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bafogpt.core import files
from bafogpt.data import curriculum
from bafogpt.storage.tokens.manifest import ITEM_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER = struct.Struct(f"<{curriculum.KEY_BYTES}sIIQQ")  # key, number of source, of language, bytes, tokens
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class CachedDoc:
    """One tokenised document."""

    key: bytes
    source: str
    tokens: NDArray[np.unsignedinteger[Any]]
    bytes: int
    """Of its text, in UTF-8."""
    language: str = ""

    @property
    def size(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class CachedLocation:
    """Where a document is in the cache, and what its position in the training stream depends on."""

    stage: str
    start: int
    """Byte offset in its stage's file."""
    key: bytes
    size: int
    """Tokens."""


@dataclass
class StageTally:
    """Counts of a stage that the choice of validation documents needs."""

    documents: int = 0
    held_out: int = 0
    train_tokens: int = 0
    least: bytes = b"\xff" * curriculum.KEY_BYTES
    """The smallest key: the document to hold out when the fraction picks none."""


class TokenCache:
    """Files in ``folder``, which the caller removes.

    Raises :class:`~bafogpt.core.errors.DiskFullError` when the disk is full.
    """

    def __init__(self, folder: Path, dtype: str, validation: float) -> None:
        self.folder = folder
        self.dtype = dtype
        self.validation = validation
        self._width = ITEM_BYTES[dtype]
        self.tallies: dict[str, StageTally] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._numbers: dict[str, int] = {}
        self._languages: dict[str, int] = {}

    def add(self, stage: str, document: CachedDoc) -> None:
        """Append a document to its stage."""
        if stage not in self._files:
            self._files[stage] = (self.folder / f"{stage}.tokens").open("wb", buffering=BUFFER_BYTES)
        number = self._numbers.setdefault(document.source, len(self._numbers))
        language = self._languages.setdefault(document.language, len(self._languages))
        with files.disk_full_named(self.folder):
            self._files[stage].write(HEADER.pack(document.key, number, language, document.bytes, document.size))
            self._files[stage].write(document.tokens.astype(self.dtype, copy=False).tobytes())
        tally = self.tallies.setdefault(stage, StageTally())
        tally.documents += 1
        tally.least = min(tally.least, document.key)
        if curriculum.held_out(document.key, self.validation):
            tally.held_out += 1
        else:
            tally.train_tokens += document.size

    def close(self) -> None:
        """Finish writing; call it before :meth:`read`."""
        with files.disk_full_named(self.folder):
            for file in self._files.values():
                file.close()

    def read(self, stage: str) -> Iterator[CachedDoc]:
        """The documents of a stage in the order they were added."""
        with self.reader() as read:
            for location in self.locations(stage):
                yield read(stage, location.start)

    def locations(self, stage: str) -> Iterator[CachedLocation]:
        """Where the documents of a stage are, in the order they were added."""
        if stage not in self.tallies:
            return
        with (self.folder / f"{stage}.tokens").open("rb") as file:
            while header := file.read(HEADER.size):
                key, _, _, _, count = HEADER.unpack(header)
                yield CachedLocation(stage, file.tell() - HEADER.size, key, count)
                file.seek(count * self._width, 1)

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str, int], CachedDoc]]:
        """A function that reads the document of a stage at ``start``; sequential reads are fastest."""
        import numpy as np

        names, languages = list(self._numbers), list(self._languages)
        with contextlib.ExitStack() as stack:
            opened = {
                stage: stack.enter_context((self.folder / f"{stage}.tokens").open("rb", buffering=BUFFER_BYTES))
                for stage in self.tallies
            }

            def read(stage: str, start: int) -> CachedDoc:
                file = opened[stage]
                file.seek(start)
                key, number, language, size, count = HEADER.unpack(file.read(HEADER.size))
                tokens = np.frombuffer(file.read(count * self._width), dtype=self.dtype)
                return CachedDoc(key, names[number], tokens, size, languages[language])

            yield read

    def exceptions(self) -> frozenset[bytes]:
        """Keys to hold out besides those that the fraction picks: one for each large stage without any."""
        if not self.validation:
            return frozenset()
        large = (each for each in self.tallies.values() if each.documents >= curriculum.SMALLEST_HELD_OUT)
        return frozenset(each.least for each in large if not each.held_out)
