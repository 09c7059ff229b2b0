"""Fetching an object: parallel ranges into ``FILE.partial``, resumable, verified, renamed. See ``transfer``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bafogpt.core import digest as digests
from bafogpt.core import files
from bafogpt.core.errors import CorruptError, DiskFullError, NotFoundError
from bafogpt.storage.bucket import Bucket, ProgressCallback
from bafogpt.storage.errors import retry_on_corruption
from bafogpt.storage.parallel import in_parallel
from bafogpt.storage.transfer.bandwidth import Bandwidth

RANGE_BYTES = 4 << 20
RANGES_IN_FLIGHT = 2  # together no more than one part of an upload: all that an interruption costs
PARTIAL, JOURNAL = ".partial", ".partial.journal"


def fetch(
    bucket: Bucket,
    path: str,
    file: Path,
    *,
    size: int,
    digest: str | None,
    progress: ProgressCallback | None = None,
    bandwidth: Bandwidth | None = None,
) -> None:
    """Fetch the object ``path`` of ``size`` bytes into ``file``, which appears whole or not at all.

    A fetch that was cut off goes on with the ranges that ``file.partial`` lacks. Content that does not match ``digest``
    raises :class:`CorruptError` (see :func:`bafogpt.storage.errors.retry_on_corruption`); nothing of it stays. Without
    a digest only the size is verified. Raises :class:`DiskFullError` when it does not fit, and what :class:`Bucket`
    raises."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if digest is None:
        info = bucket.info(path)
        if info.bytes != size:
            raise CorruptError(
                f"{bucket.url}/{path} has {info.bytes} bytes, not {size}", f"bafogpt storage ls {bucket.url}"
            )
        identity = info.etag
    else:
        identity = digest

    def once() -> None:
        moved: list[int] = []

        def count(n: int) -> None:
            moved.append(n)
            if progress is not None:
                progress(n)

        partial = _Partial(file, json.dumps([bucket.url, path, size, identity, RANGE_BYTES]))
        try:
            partial.fill(bucket, path, size, count, bandwidth)
            if digest is not None and not digests.matches(partial.path, digest):
                raise CorruptError(f"{bucket.url}/{path}: not what was written", f"bafogpt storage ls {bucket.url}")
            partial.finish()
        except (CorruptError, NotFoundError, DiskFullError):
            partial.drop()
            count(-sum(moved))  # none of it counts
            raise

    retry_on_corruption(once)


class _Partial:
    """``FILE.partial``, and beside it a journal: what it is part of, then the number of every range that is whole."""

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        self._identity = identity
        self.path = file.with_name(file.name + PARTIAL)
        self._journal = file.with_name(file.name + JOURNAL)

    def fill(
        self, bucket: Bucket, path: str, size: int, progress: ProgressCallback, bandwidth: Bandwidth | None
    ) -> None:
        """Fetch the ranges that are missing."""
        whole = self._whole()
        missing = [number for number in range(-(-size // RANGE_BYTES)) if number not in whole]
        files.require_space(self._file.parent, _bytes_of(missing, size), self._file.name)
        progress(size - _bytes_of(missing, size))
        with (
            files.disk_full_named(self._file.parent),
            self.path.open("r+b") as output,
            self._journal.open("ab") as journal,
        ):
            output.truncate(size)

            def one(number: int, _: object) -> None:
                length = _bytes_of([number], size)
                if bandwidth is not None:
                    bandwidth.take(length)
                data = bucket.get_range(path, number * RANGE_BYTES, length)
                _write_at(output.fileno(), data, number * RANGE_BYTES)
                os.write(journal.fileno(), b"%d\n" % number)  # one write, so that a kill leaves no half number
                progress(length)

            in_parallel(one, missing, RANGES_IN_FLIGHT)

    def finish(self) -> None:
        """The file under its own name."""
        os.chmod(self.path, 0o644)
        os.replace(self.path, self._file)
        self._journal.unlink()

    def drop(self) -> None:
        """Nothing is left of it."""
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _whole(self) -> set[int]:
        """The ranges that are there already; the files of anything else are made anew."""
        try:
            first, *numbers = self._journal.read_text().split("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            first, numbers = "", []
        if first == self._identity and self.path.is_file():
            return {int(number) for number in numbers if number.isdecimal()}
        self.drop()
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
