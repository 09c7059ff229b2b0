"""Append-only records in a store that cannot append.

A local file that only grows (a log, metrics, events) is mirrored as numbered parts, ``<folder>/0002-00017.jsonl``:
attempt, part; ``0002-n1-00017.jsonl`` for a run's second node. A part of :data:`PART_BYTES` is never written again, so
the cost of a long run is that of its bytes. Each attempt writes its own parts, so a dead machine cannot overwrite its
successor's.
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

    It continues where an earlier process of the same attempt stopped, by the parts in the bucket.
    """

    def __init__(self, bucket: Bucket, folder: str, attempt: int, source: Path, node: int = 0) -> None:
        self._bucket = bucket
        self._folder = folder
        self._stem = f"{attempt:04d}-n{node}" if node else f"{attempt:04d}"
        self._source = source
        self._part: int | None = None
        self._part_start = 0
        self._sent = 0

    def flush(self) -> int:
        """Send what was written since the last call; returns the number of bytes.

        Raises :class:`~bafogpt.core.errors.StorageError`; the next call sends it then.
        """
        if not self._source.exists():
            return 0
        if self._part is None:
            self._part = self._find_position()
        sent = 0
        while True:
            data = self._unsealed()
            if self._part_start + len(data) <= self._sent:
                return sent
            self._bucket.put(f"{self._folder}/{self._stem}-{self._part:05d}{self._source.suffix}", data)
            sent += self._part_start + len(data) - self._sent
            self._sent = self._part_start + len(data)
            if len(data) < PART_BYTES:
                return sent
            self._part += 1
            self._part_start = self._sent

    def _unsealed(self) -> bytes:
        """The bytes of the part being written."""
        with self._source.open("rb") as file:
            file.seek(self._part_start)
            return file.read(PART_BYTES)

    def _find_position(self) -> int:
        """The number of the part to continue, by what this attempt has in the bucket."""
        parts = _parts(self._bucket, self._folder, self._stem)
        sizes = [size for _, size in parts]
        self._sent = sum(sizes)
        unfinished = bool(sizes) and sizes[-1] < PART_BYTES
        self._part_start = self._sent - sizes[-1] if unfinished else self._sent
        return len(sizes) - unfinished


class FileUploader:
    """Uploads each file that appears in a local folder, once, into ``folder`` of ``bucket``.

    A file gets its name when it is complete; names that begin with a dot are left out.
    """

    def __init__(self, bucket: Bucket, folder: str, source: Path) -> None:
        self._bucket = bucket
        self._folder = folder
        self._source = source
        self._sent: set[str] = set()

    def flush(self) -> list[str]:
        """Send new files; returns their paths in the bucket.

        Raises :class:`~bafogpt.core.errors.StorageError`; the next call sends it then.
        """
        sent = []
        for file in sorted(self._source.glob("[!.]*")):
            if file.name not in self._sent:
                self._bucket.upload(f"{self._folder}/{file.name}", file)
                self._sent.add(file.name)
                sent.append(f"{self._folder}/{file.name}")
        return sent


def read_bytes(bucket: Bucket, folder: str) -> bytes:
    """All parts joined, attempt after attempt; empty where there are none."""
    return b"".join(bucket.get(path) for path, _ in _parts(bucket, folder))


class SegmentReader:
    """Reads JSON lines as they are written, each byte once.

    ``tail_bytes`` reads only the end of the log at the first read; ``attempt`` reads node 0's lines of one
    attempt only.
    """

    def __init__(
        self, bucket: Bucket, folder: str, tail_bytes: int | None = None, *, attempt: int | None = None
    ) -> None:
        self._bucket = bucket
        self._folder = folder
        self._tail_bytes = tail_bytes
        self._stem = "" if attempt is None else f"{attempt:04d}"
        self._read: dict[str, int] | None = None
        """Bytes read of each part; None before the first read."""
        self._rest: dict[str, bytes] = {}
        """The incomplete last line of each writer."""

    def read(self) -> list[dict[str, Any]]:
        """The records written since the last call, by attempt and in order."""
        parts = _parts(self._bucket, self._folder, self._stem)
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


def _parts(bucket: Bucket, folder: str, stem: str = "") -> list[tuple[str, int]]:
    """(path, bytes) of all parts, or of one writer's, in order."""
    own = re.compile(rf"{stem or '.*'}-\d{{5,}}\.")
    try:
        listed = bucket.list(f"{folder}/")
    except NotFoundError:
        return []
    return sorted((info.path, info.bytes) for info in listed if own.match(info.path.rpartition("/")[2]))


def _skipped(parts: list[tuple[str, int]], tail_bytes: int | None) -> dict[str, int]:
    """How many bytes of each part are not read: all but the last ``tail_bytes`` of each writer."""
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
    """Attempt and node of a part."""
    return path.rpartition("-")[0]


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; a line cut off by a kill or by a tail is not."""
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
