"""Content hashes, written as ``algorithm:hex``.

``xxh3`` (128 bit, ~8 GB/s) finds the flipped bit in a stream; ``blake3`` (~3 GB/s) names files by content, where
two different files must never share a name. A digest names its algorithm, so either can be read anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol, cast

from bafogpt.core.errors import CorruptError

Algorithm = Literal["xxh3", "blake3"]
READ_BYTES = 8 << 20


class Hasher(Protocol):
    """What xxhash and blake3 objects share."""

    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


def hasher(algorithm: str) -> Hasher:
    """A new hash object. Raises :class:`CorruptError` for an algorithm this version does not know."""
    if algorithm == "xxh3":
        import xxhash

        return cast(Hasher, xxhash.xxh3_128())
    if algorithm == "blake3":
        import blake3

        return cast(Hasher, blake3.blake3())
    raise CorruptError(f"unknown digest algorithm '{algorithm}'", "pip install --upgrade bafogpt")


def of_chunks(chunks: Iterable[bytes], algorithm: Algorithm = "blake3") -> str:
    """The digest of the chunks joined."""
    state = hasher(algorithm)
    for chunk in chunks:
        state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def of_bytes(data: bytes, algorithm: Algorithm = "blake3") -> str:
    """The digest of ``data``."""
    return of_chunks((data,), algorithm)


def of_file(path: Path, algorithm: Algorithm = "blake3") -> str:
    """The digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return of_chunks(iter(lambda: file.read(READ_BYTES), b""), algorithm)


def matches(path: Path, digest: str) -> bool:
    """Whether the file's content has that digest, whatever algorithm it names."""
    algorithm = digest.partition(":")[0]
    hasher(algorithm)  # refuses an unknown one
    return of_file(path, cast(Algorithm, algorithm)) == digest
