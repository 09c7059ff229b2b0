"""Reading a dataset: one split as one flat array of tokens, cut into samples by arithmetic.

The state of a reader is one integer, the index of the next sample. So what a run reads does not depend on how many
processes read, nor on when they were stopped.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, DataError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.manifest import HASH_CHARS, ITEM_BYTES, Shard, TokenManifest

log = logging.getLogger(__name__)
BLOCKS_IN_MEMORY = 3
_CACHED = re.compile(rf"[0-9a-f]{{{HASH_CHARS}}}|\.block-.*")
Tokens = NDArray[np.uint16] | NDArray[np.uint32]


class BlockCache:
    """Blocks on local disk, named by their hash, ``limit_bytes`` in all; the least recently used go first.

    Several processes may share a folder. A cache never fails its reader: on a full disk it keeps less.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        """The block whose hash is ``name``, as the disk gives it back; the caller verifies it."""
        path = self._folder / name
        try:
            data = path.read_bytes()
            now = time.time_ns()  # finer than the file system's own clock
            os.utime(path, ns=(now, now))
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a block. Not synced to disk: after a power cut its hash tells."""
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


class TokenStream:
    """One split of a dataset as one flat array of ``tokens`` tokens (uint16 or uint32).

    Tokens are fetched in blocks; each is verified by its hash before a token of it is seen, and the last few stay
    in memory. It may be used from several threads, and not across a fork.
    """

    def __init__(self, bucket: Bucket, manifest: TokenManifest, split: str, *, cache: BlockCache | None = None) -> None:
        self._bucket = bucket
        self._split = manifest.splits[split]
        self._dtype = np.dtype(f"<u{ITEM_BYTES[manifest.dtype]}")
        self._block_bytes = manifest.block_bytes
        self._cache = cache
        self._recent: OrderedDict[tuple[int, int], Tokens] = OrderedDict()
        self._lock = threading.Lock()
        self.tokens = self._split.tokens

    def read(self, start: int, count: int) -> Tokens:
        """Tokens [start, start + count) as an array of its own, across the borders of shards.

        Raises :class:`CorruptError` naming the shard and the byte range where content is not what was written, and
        IndexError outside [0, ``tokens``).
        """
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.tokens}")
        result = np.empty(count, self._dtype)
        per_block = self._block_bytes // self._dtype.itemsize
        done = 0
        while done < count:
            index, offset = self._split.locate(start + done)
            block = self._block(index, offset // per_block)
            piece = block[offset % per_block :][: count - done]
            result[done : done + len(piece)] = piece
            done += len(piece)
        return result

    def _block(self, index: int, number: int) -> Tokens:
        """Block ``number`` of shard ``index``, decoded."""
        key = (index, number)
        with self._lock:
            block = self._recent.pop(key, None)
            if block is None:
                data = self._fetch(self._split.shards[index], number)
                block = np.frombuffer(data, self._dtype)
            self._recent[key] = block
            if len(self._recent) > BLOCKS_IN_MEMORY:
                self._recent.popitem(last=False)
            return block

    def _fetch(self, shard: Shard, number: int) -> bytes:
        """A verified block, from the cache or from the bucket."""
        expected = shard.blocks[number * HASH_CHARS : (number + 1) * HASH_CHARS]
        if self._cache is not None:
            cached = self._cache.get(expected)
            if cached is not None and _hash(cached) == expected:
                return cached
        start = number * self._block_bytes
        length = min(self._block_bytes, shard.tokens * self._dtype.itemsize - start)
        for _ in range(2):  # once more: the bit may have flipped on its way
            data = self._bucket.get_range(shard.object, start, length)
            if _hash(data) == expected:
                if self._cache is not None:
                    self._cache.put(expected, data)
                return data
            log.warning("%s bytes %d-%d do not match their hash", shard.object, start, start + length - 1)
        raise CorruptError(
            f"{self._bucket.url}/{shard.object} bytes {start}-{start + length - 1}: not what was written",
            "bafogpt data prepare … --overwrite writes the dataset anew",
        )


def _hash(data: bytes) -> str:
    return digest.of_bytes(data, "xxh3").removeprefix("xxh3:")


@dataclass(frozen=True)
class Samples:
    """Training samples of ``length`` T: sample i is the T+1 tokens [k·T, k·T + T], where k = i mod ``count``.

    The last token of a sample is a target only and the first of the next one. After ``count`` samples the next
    epoch gives the same ones in the same order. Raises :class:`DataError` when the stream is too short for one.
    """

    stream: TokenStream
    length: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        count = (self.stream.tokens - 1) // self.length
        if count < 1:
            raise DataError(
                f"the dataset has {self.stream.tokens} tokens, one sample of {self.length} needs {self.length + 1}",
                "add text, or lower data.sequence_length",
            )
        object.__setattr__(self, "count", count)

    def __getitem__(self, index: int) -> Tokens:
        """Sample ``index`` ≥ 0, of shape (T+1,)."""
        if index < 0:
            raise IndexError(index)
        return self.stream.read(index % self.count * self.length, self.length + 1)


def prefetch(samples: Samples, indices: Iterable[int], depth: int) -> Generator[tuple[int, Tokens]]:
    """(index, sample) for each of ``indices`` in order, read ``depth`` samples ahead by a thread.

    An error is raised where its sample would have come. Closing the iterator ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    finished = object()

    def work() -> None:
        try:
            for index in indices:
                ready.put((index, samples[index]))
                if closed.is_set():
                    return
            ready.put(finished)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not finished:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                thread.join(0)
