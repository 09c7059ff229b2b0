"""Tokenised documents on a local disk, one file a stage, written and read in order.

The curriculum's order is known only once every source has been read, and a corpus need not fit in memory. Tokens
are spilled instead of text: they are smaller, and then the second pass has nothing left to compute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bafogpt.core import files
from bafogpt.data import curriculum

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER = struct.Struct(f"<{curriculum.KEY_BYTES}sIIQQ")  # key, number of source, of language, bytes, tokens
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Spilled:
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


@dataclass
class StageTally:
    """What a stage holds, as far as the choice of validation needs it."""

    documents: int = 0
    held_out: int = 0
    train_tokens: int = 0
    least: bytes = b"\xff" * curriculum.KEY_BYTES
    """The smallest key: the one document to hold out when the fraction picks none."""


class Spill:
    """Files of documents in ``folder``, which the caller removes. Raises :class:`DiskFullError` when it is full."""

    def __init__(self, folder: Path, dtype: str, validation: float) -> None:
        self.folder = folder
        self.dtype = dtype
        self.validation = validation
        self.tallies: dict[str, StageTally] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._numbers: dict[str, int] = {}
        self._languages: dict[str, int] = {}

    def add(self, stage: str, document: Spilled) -> None:
        """Append a document to its stage."""
        if stage not in self._files:
            self._files[stage] = (self.folder / f"{stage}.spill").open("wb", buffering=BUFFER_BYTES)
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
        """End writing; :meth:`read` comes after it."""
        with files.disk_full_named(self.folder):
            for file in self._files.values():
                file.close()

    def read(self, stage: str) -> Iterator[Spilled]:
        """The documents of a stage in the order they were added; none for a stage that has none."""
        import numpy as np

        if stage not in self.tallies:
            return
        names, languages = list(self._numbers), list(self._languages)
        width = np.dtype(self.dtype).itemsize
        with (self.folder / f"{stage}.spill").open("rb", buffering=BUFFER_BYTES) as file:
            while header := file.read(HEADER.size):
                key, number, language, size, count = HEADER.unpack(header)
                tokens = np.frombuffer(file.read(count * width), dtype=self.dtype)
                yield Spilled(key, names[number], tokens, size, languages[language])

    def exceptions(self) -> frozenset[bytes]:
        """Keys held out although the fraction does not pick them: one for each large stage that would have none."""
        if not self.validation:
            return frozenset()
        large = (each for each in self.tallies.values() if each.documents >= curriculum.SMALLEST_HELD_OUT)
        return frozenset(each.least for each in large if not each.held_out)
