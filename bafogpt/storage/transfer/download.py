"""Fetch an object: parallel ranges into ``FILE.partial``, resumably, verified, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bafogpt.core import digest as digests
from bafogpt.core import files
from bafogpt.core.errors import CorruptError, DiskFullError, NotFoundError
from bafogpt.storage.bucket import Bucket, ProgressCallback, no_progress
from bafogpt.storage.errors import retry_on_corruption
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer.bandwidth import Bandwidth

RANGE_BYTES = 4 << 20
RANGES_IN_FLIGHT = 2  # together no more than one part of an upload: that is what an interruption costs
PARTIAL, JOURNAL = ".partial", ".partial.journal"


def fetch(
    bucket: Bucket,
    path: str,
    file: Path,
    *,
    size: int,
    digest: str | None,
    progress: ProgressCallback = no_progress,
    bandwidth: Bandwidth | None = None,
) -> None:
    """Fetch the object ``path`` of ``size`` bytes into ``file``, which appears whole or not at all.

    An interrupted download resumes with the ranges that ``file.partial`` lacks. Content that never matches ``digest``
    (see :func:`bafogpt.storage.errors.retry_on_corruption`) is removed and raises :class:`CorruptError`; without a
    digest only the size is verified. Raises :class:`DiskFullError`, and what :class:`Bucket` raises.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    identity = digest or _etag_of_size(bucket, path, size)
    partial = _PartialFile(file, json.dumps([bucket.url, path, size, identity, RANGE_BYTES]))

    def once() -> None:
        moved: list[int] = []

        def count(n: int) -> None:
            moved.append(n)
            progress(n)

        try:
            partial.fill(bucket, path, size, count, bandwidth)
            if digest is not None and not digests.matches(partial.path, digest):
                raise CorruptError(f"{bucket.url}/{path}: does not match its hash", f"bafogpt storage ls {bucket.url}")
        except (CorruptError, NotFoundError, DiskFullError):
            partial.remove()
            progress(-sum(moved))
            raise

    retry_on_corruption(once)
    partial.rename()


def _etag_of_size(bucket: Bucket, path: str, size: int) -> str:
    """The ETag of an object. Raises :class:`CorruptError` unless it has that size."""
    info = bucket.info(path)
    if info.bytes != size:
        message = f"{bucket.url}/{path} has {info.bytes} bytes, not {size}"
        raise CorruptError(message, f"bafogpt storage ls {bucket.url}")
    return info.etag


class _PartialFile:
    """``FILE.partial``, and a journal beside it: what it is part of, then the number of every complete range."""

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        self._identity = identity
        self.path = file.with_name(file.name + PARTIAL)
        self._journal = file.with_name(file.name + JOURNAL)

    def fill(
        self, bucket: Bucket, path: str, size: int, progress: ProgressCallback, bandwidth: Bandwidth | None
    ) -> None:
        """Fetch the missing ranges."""
        complete = self._complete_ranges()
        missing = [number for number in range(-(-size // RANGE_BYTES)) if number not in complete]
        files.require_space(self._file.parent, _bytes_of(missing, size), self._file.name)
        progress(size - _bytes_of(missing, size))
        with (
            files.disk_full_named(self._file.parent),
            self.path.open("r+b") as output,
            self._journal.open("ab") as journal,
        ):
            output.truncate(size)

            def one(number: int, _: Check) -> None:
                length = _bytes_of([number], size)
                if bandwidth is not None:
                    bandwidth.take(length)
                data = bucket.get_range(path, number * RANGE_BYTES, length)
                _write_at(output.fileno(), data, number * RANGE_BYTES)
                os.write(journal.fileno(), b"%d\n" % number)  # one write, so that a kill leaves no half number
                progress(length)

            in_parallel(one, missing, RANGES_IN_FLIGHT)

    def rename(self) -> None:
        """Give the complete file its name."""
        os.chmod(self.path, 0o644)
        os.replace(self.path, self._file)
        self._journal.unlink()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _complete_ranges(self) -> set[int]:
        """The ranges that are complete; files of another download are replaced."""
        try:
            first, *numbers = self._journal.read_text().split("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            first, numbers = "", []
        if first == self._identity and self.path.is_file():
            return {int(number) for number in numbers if number.isdecimal()}
        self.remove()
        with files.disk_full_named(self._file.parent):
            self.path.touch()
            self._journal.write_text(self._identity + "\n")
        return set()


def _bytes_of(ranges: list[int], size: int) -> int:
    return sum(min(RANGE_BYTES, size - number * RANGE_BYTES) for number in ranges)


def _write_at(handle: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(handle, data, position)
        data, position = data[written:], position + written
