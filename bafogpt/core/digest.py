"""Content hashes, written as ``algorithm:hex``.

``xxh3`` (128 bit, ~8 GB/s) detects flipped bits in a stream; ``blake3`` (~3 GB/s) identifies files by content;
``sha256`` (~0.6 GB/s) is the Hugging Face Hub's identifier of large files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from bafogpt.core.errors import CorruptError

Algorithm = Literal["xxh3", "blake3", "sha256"]
READ_BYTES = 1 << 20


class Hasher(Protocol):
    """The common interface of xxhash, blake3 and hashlib objects."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def hasher(algorithm: str) -> Hasher:
    """A new hash object. Raises :class:`CorruptError` for an unknown algorithm."""
    if algorithm == "xxh3":
        import xxhash

        return cast(Hasher, xxhash.xxh3_128())
    if algorithm == "blake3":
        import blake3

        return cast(Hasher, blake3.blake3())
    if algorithm == "sha256":
        import hashlib

        return hashlib.sha256()
    raise CorruptError(f"unknown digest algorithm '{algorithm}'", "pip install --upgrade bafogpt")


def of_chunks(chunks: Iterable[bytes], algorithm: Algorithm = "blake3") -> str:
    """The digest of the concatenated chunks."""
    state = hasher(algorithm)
    for chunk in chunks:
        state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def of_bytes(data: bytes, algorithm: Algorithm = "blake3") -> str:
    """The digest of ``data``."""
    return of_chunks((data,), algorithm)


def of_json(content: Mapping[str, Any]) -> str:
    """The digest of JSON values, independent of the order of keys."""
    return of_bytes(json.dumps(content, sort_keys=True).encode())


def of_file(path: Path, algorithm: Algorithm = "blake3") -> str:
    """The digest of a file's content, read through one small buffer that stays in the CPU's cache."""
    state = hasher(algorithm)
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return f"{algorithm}:{state.hexdigest()}"


def matches(path: Path, digest: str) -> bool:
    """Whether the file's content has that digest."""
    algorithm = digest.partition(":")[0]
    hasher(algorithm)  # refuses an unknown one
    return of_file(path, cast(Algorithm, algorithm)) == digest
