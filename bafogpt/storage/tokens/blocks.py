"""Verified blocks: spans of objects that must match their hash, and a cache of them on disk."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import cast

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.errors import retry_on_corruption
from bafogpt.storage.tokens.manifest import HASH_CHARS

log = logging.getLogger(__name__)
_CACHED = re.compile(rf"[0-9a-f]{{{HASH_CHARS}}}|\.block-.*")
Buffer = bytes | memoryview


class BlockCache:
    """Blocks on local disk, named by their hash, ``limit_bytes`` in all; the least recently used are removed first.

    Several processes may share a folder. An error while writing, such as a full disk, is only logged.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        """The block whose hash is ``name``, unverified; ``None`` when it is not cached."""
        path = self._folder / name
        try:
            data = path.read_bytes()
            now = time.time_ns()  # finer than the file system's own clock
            os.utime(path, ns=(now, now))
        except OSError:
            return None
        return data

    def put(self, name: str, data: Buffer) -> None:
        """Keep a block. It is not synced to disk, because readers verify it."""
        if len(data) > self._limit:
            return
        try:
            self._make_room(len(data))
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".block-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, self._folder / name)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            log.warning("%s: the block cache is not written: %s", self._folder, error.strerror)

    def _make_room(self, needed: int) -> None:
        entries = []
        for entry in os.scandir(self._folder):
            if not _CACHED.fullmatch(entry.name):
                continue
            try:
                found = entry.stat()
            except FileNotFoundError:  # another process made room
                continue
            entries.append((found.st_mtime_ns, found.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total + needed <= self._limit:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


class VerifiedReader:
    """Reads blocks of a dataset's objects from the cache or the bucket, and verifies them."""

    def __init__(self, bucket: Bucket, cache: BlockCache | None) -> None:
        self._bucket = bucket
        self._cache = cache

    def read(self, path: str, start: int, length: int, expected: str) -> Buffer:
        """Bytes [start, start + length) of the object ``path``, whose xxh3 is ``expected`` (hex).

        Raises :class:`CorruptError` with object and range when they never match (see
        :func:`bafogpt.storage.errors.retry_on_corruption`), and what :class:`Bucket` raises.
        """
        if self._cache is not None:
            cached = self._cache.get(expected)
            if cached is not None and _hash(cached) == expected:
                return cached
        data = retry_on_corruption(lambda: self._fetch(path, start, length, expected))
        if self._cache is not None:
            self._cache.put(expected, data)
        return data

    def _fetch(self, path: str, start: int, length: int, expected: str) -> memoryview:
        with contextlib.suppress(CorruptError):  # the object is too short
            data = self._bucket.get_range(path, start, length)
            if _hash(data) == expected:
                return data
        raise CorruptError(
            f"{self._bucket.url}/{path} bytes {start}-{start + length - 1}: does not match its hash",
            "bafogpt data prepare … --overwrite rewrites the dataset",
        )


def _hash(data: Buffer) -> str:
    return digest.of_bytes(cast(bytes, data), "xxh3").removeprefix("xxh3:")
