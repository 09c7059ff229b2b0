"""Append-only records in a store that cannot append.

A local file that only grows (a log, metrics, events) is mirrored as numbered parts, ``<folder>/0002-00017.jsonl``:
attempt, part; of a run's second machine ``0002-n1-00017.jsonl``. A part that has reached :data:`PART_BYTES` is never
touched again, so the cost of a long run is that of its bytes, and each attempt writes parts of its own, so a machine
that died cannot overwrite its successor's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bafogpt.core.errors import NotFoundError
from bafogpt.storage.bucket import Bucket

PART_BYTES = 1 << 20


class SegmentWriter:
    """Mirrors one growing local file into parts below ``folder`` of ``bucket``.

    What an earlier process of the same attempt had sent is found in the bucket, so a feed goes on where the last
    one stopped.
    """

    def __init__(self, bucket: Bucket, folder: str, attempt: int, source: Path, suffix: str, node: int = 0) -> None:
        self._bucket = bucket
        self._folder = folder
        self._stem = f"{attempt:04d}-n{node}" if node else f"{attempt:04d}"
        self._source = source
        self._suffix = suffix
        self._part: int | None = None
        self._part_start = 0
        self._sent = 0

    def flush(self) -> int:
        """Send what has been written since the last call; returns how many bytes that was.

        Raises :class:`~bafogpt.core.errors.StorageError`; the next call sends it then.
        """
        if self._part is None:
            self._find_position()
        assert self._part is not None
        sent = 0
        while True:
            data = self._unsealed()
            if self._part_start + len(data) <= self._sent:
                return sent
            self._bucket.put(self._name(self._part), data)
            sent += self._part_start + len(data) - self._sent
            self._sent = self._part_start + len(data)
            if len(data) < PART_BYTES:
                return sent
            self._part += 1
            self._part_start = self._sent

    def _unsealed(self) -> bytes:
        """The bytes of the part being written."""
        try:
            with self._source.open("rb") as file:
                file.seek(self._part_start)
                return file.read(PART_BYTES)
        except FileNotFoundError:
            return b""

    def _find_position(self) -> None:
        """Continue at the last part that this attempt has in the bucket."""
        part = re.compile(rf"{self._stem}-\d{{5,}}\.")
        listed = self._bucket.list(f"{self._folder}/")
        own = [info for info in listed if part.match(info.path.rsplit("/", 1)[-1])]
        sizes = [info.bytes for info in sorted(own, key=lambda info: info.path)]
        if sizes and sizes[-1] < PART_BYTES:
            self._part = len(sizes) - 1
            self._part_start = sum(sizes[:-1])
        else:
            self._part = len(sizes)
            self._part_start = sum(sizes)
        self._sent = sum(sizes)

    def _name(self, part: int) -> str:
        return f"{self._folder}/{self._stem}-{part:05d}.{self._suffix}"


class FileUploader:
    """Sends the files that appear in one local folder, each once, into ``folder`` of ``bucket``.

    A file has its name when it is whole; names that begin with a dot are not sent.
    """

    def __init__(self, bucket: Bucket, folder: str, source: Path) -> None:
        self._bucket = bucket
        self._folder = folder
        self._source = source
        self._sent: set[str] = set()

    def flush(self) -> list[str]:
        """Send what is new; returns the paths that it has in the bucket now.

        Raises :class:`~bafogpt.core.errors.StorageError`; the next call sends it then.
        """
        sent = []
        for file in sorted(self._source.glob("[!.]*")):
            if file.name not in self._sent:
                self._bucket.upload(f"{self._folder}/{file.name}", file)
                self._sent.add(file.name)
                sent.append(f"{self._folder}/{file.name}")
        return sent


def read(bucket: Bucket, folder: str, attempt: int | None = None) -> bytes:
    """All parts of a feed joined, attempt after attempt; or those that node 0 wrote in one. A feed that does not exist
    is empty."""
    try:
        names = sorted(info.path for info in bucket.list(f"{folder}/"))
    except NotFoundError:
        return b""
    if attempt is not None:
        own = re.compile(rf"{attempt:04d}-\d{{5,}}\.")
        names = [name for name in names if own.match(name.rsplit("/", 1)[-1])]
    return b"".join(bucket.get(name) for name in names)


def read_lines(bucket: Bucket, folder: str, attempt: int | None = None) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines feed, as :func:`read` has it. A line that was cut off by a kill is skipped."""
    yield from _records(read(bucket, folder, attempt).splitlines())


class SegmentReader:
    """Reads a JSON-lines feed as it grows, each byte once; with ``tail_bytes`` only from near its end on."""

    def __init__(self, bucket: Bucket, folder: str, tail_bytes: int | None = None) -> None:
        self._bucket = bucket
        self._folder = folder
        self._tail_bytes = tail_bytes
        self._read: dict[str, int] | None = None
        """Bytes taken of each part; None before the first look."""
        self._rest: dict[str, bytes] = {}
        """The line, not yet whole, at the end of each writer's parts."""

    def read(self) -> list[dict[str, Any]]:
        """The records that were written since the last call, by attempt and in order. No feed has none."""
        try:
            parts = sorted((info.path, info.bytes) for info in self._bucket.list(f"{self._folder}/"))
        except NotFoundError:
            return []
        if self._read is None:
            self._read = _skipped(parts, self._tail_bytes)
        found = []
        for path, size in parts:
            start = self._read.get(path, 0)
            if size <= start:
                continue
            data = bytes(self._bucket.get_range(path, start, size - start))
            self._read[path] = size
            writer = _writer(path)
            *lines, self._rest[writer] = (self._rest.get(writer, b"") + data).split(b"\n")
            found += list(_records(lines))
        return found


def _skipped(parts: list[tuple[str, int]], tail_bytes: int | None) -> dict[str, int]:
    """How much of each part is not read: all but the last ``tail_bytes`` of each writer."""
    if tail_bytes is None:
        return {}
    left: dict[str, int] = {}
    skipped = {}
    for path, size in reversed(parts):
        take = min(size, left.get(_writer(path), tail_bytes))
        left[_writer(path)] = left.get(_writer(path), tail_bytes) - take
        skipped[path] = size - take
    return skipped


def _writer(path: str) -> str:
    """Attempt and node of a part: one supervisor's own file."""
    return path.rpartition("-")[0]


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; one that a kill has cut off, or in which a tail begins, is not."""
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
