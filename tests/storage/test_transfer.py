from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core import digest
from bafogpt.core.errors import AuthError, CorruptError, DiskFullError, UnreachableError
from bafogpt.core.process import wait_until
from bafogpt.core.settings import Settings
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer import multipart
from bafogpt.storage.transfer.checksum import crc32
from bafogpt.storage.transfer.multipart import MultipartUpload, Part, UploadEndedError
from tests.faults.proxy import Proxy
from tests.storage.tools import Clock

PART = 5 << 20  # the least that S3 takes

Make = Callable[[int], Path]
Limit = Callable[[int], AbstractContextManager[None]]


def _fetched(bucket: Bucket, path: str, sent: transfer.Sent, into: Path) -> bytes:
    target = into / "fetched" / path
    transfer.fetch(bucket, path, target, size=sent.bytes, digest=sent.digest)
    assert os.listdir(target.parent) == [target.name]
    return target.read_bytes()


def test_a_bandwidth_is_an_average_limit_and_unused_time_is_lost() -> None:
    clock = Clock()
    line = transfer.Bandwidth(1000, clock, clock.sleep)
    for _ in range(5):
        line.take(500)
    assert clock.now == pytest.approx(102.5)
    clock.now += 60
    line.take(1000)
    assert clock.now == pytest.approx(163.5)
    transfer.Bandwidth(None, clock, clock.sleep).take(1 << 40)
    assert clock.now == pytest.approx(163.5)
    with pytest.raises(ValueError, match="0 bytes"):
        transfer.Bandwidth(0)
    waits: list[float] = []
    shared = transfer.Bandwidth(1000, clock=lambda: 0.0, sleep=waits.append)
    for _ in range(3):  # as threads that wait at the same time
        shared.take(100)
    assert waits == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART + 77])
def test_a_sent_file_is_fetched_unchanged(
    anywhere: Bucket, random_file: Make, tmp_path: Path, small_parts: int, size: int
) -> None:
    file = random_file(size)
    moved: list[int] = []
    sent = transfer.send(file, anywhere, "a folder/x.bin", progress=moved.append)
    assert (sent.bytes, sent.digest, sent.resumed) == (size, digest.of_file(file), 0)
    assert sum(moved) == size
    assert anywhere.info("a folder/x.bin").etag == sent.etag
    assert _fetched(anywhere, "a folder/x.bin", sent, tmp_path) == file.read_bytes()


def test_seaweedfs_is_seen_to_verify_checksums_and_nothing_is_read_back(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "chunks", None)
    file = random_file(PART + 1)
    sent = transfer.send(file, bucket, "x")
    assert (sent.proof, sent.etag) == ("checksum", transfer.etag_of(file))
    small = random_file(10)
    sent = transfer.send(small, bucket, "y")
    assert (sent.proof, sent.etag) == ("etag", transfer.etag_of(small))
    assert multipart.unfinished(bucket) == []


def _flip(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line that flips a bit in each of the next ``times`` big requests."""
    flipped: list[int] = []

    class Flipping(multipart._Body):
        def __init__(self, data: bytes, before_write: Any) -> None:
            if len(flipped) < times:
                flipped.append(len(data))
                data = bytes(data[:-1]) + bytes([data[-1] ^ 1])
            super().__init__(data, before_write)

    monkeypatch.setattr(multipart, "_Body", Flipping)
    return flipped


def test_a_part_with_a_flipped_bit_is_refused_and_sent_again(
    bucket: Bucket, random_file: Make, tmp_path: Path, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped = _flip(2, monkeypatch)
    file = random_file(PART + 1)
    sent = transfer.send(file, bucket, "x")
    assert len(flipped) == 2
    assert _fetched(bucket, "x", sent, tmp_path) == file.read_bytes()


@pytest.mark.parametrize(("times", "verifies"), [(1000, True), (1, False)])
def test_a_flipped_bit_is_an_error_and_no_object(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch, times: int, verifies: bool
) -> None:
    """The server refuses every attempt; or it verifies nothing, and reading back finds the bit."""
    bucket.address("")[0].verifies_checksums = verifies
    flipped = _flip(times, monkeypatch)
    with pytest.raises(CorruptError, match="the data was corrupted in transit"):
        transfer.send(random_file(PART + 1), bucket, "x")
    assert len(flipped) <= 2 * multipart.PART_ATTEMPTS
    assert not bucket.exists("x")


def test_an_interrupted_upload_resumes_with_the_parts_that_are_right(
    bucket: Bucket, random_file: Make, tmp_path: Path, small_parts: int
) -> None:
    file = random_file(3 * PART + 5)
    data = file.read_bytes()
    upload = multipart.begin(bucket, "x", checksum=True)
    upload.send(1, data[:PART], checksum=True)
    upload.send(2, bytes(PART), checksum=True)  # of the right size only
    upload.send(3, data[2 * PART : 3 * PART - 1], checksum=True)
    upload.send(4, data[3 * PART :], checksum=True)
    sent = transfer.send(file, bucket, "x")
    assert sent.resumed == PART + 5
    assert _fetched(bucket, "x", sent, tmp_path) == data
    assert multipart.unfinished(bucket) == []


def test_the_upload_of_another_object_is_left_alone(bucket: Bucket, random_file: Make, small_parts: int) -> None:
    for path in ("x/y", "xy", "x"):
        multipart.begin(bucket, path, checksum=True)
    assert [upload.path for upload in multipart.unfinished(bucket, "x/")] != []
    assert {upload.path for upload in multipart.unfinished(bucket, "x")} == {"x", "x/y"}
    transfer.send(random_file(PART + 1), bucket, "x")
    assert {upload.path for upload in multipart.unfinished(bucket)} == {"x/y", "xy"}


SENDER = """
    import sys
    from pathlib import Path
    from bafogpt.core.settings import Settings
    from bafogpt.storage import transfer
    from bafogpt.storage.bucket import Bucket

    url, endpoint, file = sys.argv[1:]
    bucket = Bucket.open(url, Settings(bucket=url, s3_endpoint=endpoint))
    transfer.send(Path(file), bucket, "big", bandwidth=transfer.Bandwidth(100e6))
"""


def test_a_sender_that_is_killed_costs_at_most_one_part(
    bucket: Bucket, s3: Any, random_file: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (64 << 20) + 321
    file = random_file(size)
    with Proxy(s3.environment["AWS_ENDPOINT_URL"]) as line:
        command = [sys.executable, "-c", textwrap.dedent(SENDER), bucket.url, line.url, str(file)]
        child = subprocess.Popen(command, env=os.environ | s3.environment)
        assert wait_until(lambda: line.up > 40 << 20 or child.poll() is not None, 60, poll_s=0.001)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not bucket.exists("big")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, s3.environment[name])
        through = Bucket.open(bucket.url, Settings(bucket=bucket.url, s3_endpoint=line.url))
        sent = transfer.send(file, through, "big")
        assert size < line.up <= size + transfer.PART_BYTES + 10_000  # what asks for something has a body too
    assert sent.resumed >= 32 << 20
    assert _fetched(bucket, "big", sent, tmp_path) == file.read_bytes()


def test_a_completion_whose_answer_was_lost_is_a_completion(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = MultipartUpload.complete

    def lose(self: MultipartUpload, parts: list[Part]) -> str:
        complete(self, parts)
        raise UploadEndedError("gone", "again")

    monkeypatch.setattr(MultipartUpload, "complete", lose)
    file = random_file(PART + 1)
    assert transfer.send(file, bucket, "x").etag == transfer.etag_of(file) == bucket.info("x").etag


def test_an_upload_that_another_process_ends_can_begin_again(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = MultipartUpload.complete

    def abort_first(self: MultipartUpload, parts: list[Part]) -> str:
        self.abort()
        self.abort()  # twice is fine
        return complete(self, parts)

    file = random_file(PART + 1)
    with monkeypatch.context() as patch:
        patch.setattr(MultipartUpload, "complete", abort_first)
        with pytest.raises(UnreachableError, match="another process ended this upload"):
            transfer.send(file, bucket, "x")
    assert not bucket.exists("x")
    assert transfer.send(file, bucket, "x").resumed == 0


def test_sending_works_without_permission_to_list_uploads(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AuthError("access refused", "ask")

    monkeypatch.setattr(multipart, "unfinished", refuse)
    assert transfer.send(random_file(PART + 1), bucket, "x").proof == "checksum"


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(
    anywhere: Bucket, random_file: Make, small_parts: int
) -> None:
    file = random_file(4 * PART)

    def shrink(_: int) -> None:
        os.truncate(file, PART)

    with pytest.raises(CorruptError, match="became shorter"):
        transfer.send(file, anywhere, "x", progress=shrink)
    assert not anywhere.exists("x")


def test_a_failed_write_to_local_disk_leaves_nothing(
    full_disk: Limit, folder: Bucket, random_file: Make, small_parts: int, tmp_path: Path
) -> None:
    file = random_file(2 * PART)
    with full_disk(PART), pytest.raises(DiskFullError):
        transfer.send(file, folder, "x/y")
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


def test_a_bandwidth_limits_sends_and_fetches(
    bucket: Bucket, random_file: Make, tmp_path: Path, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    line = transfer.Bandwidth(1e6, clock, clock.sleep)
    sent = transfer.send(random_file(PART + 1), bucket, "x", bandwidth=line)
    assert clock.now - 100 == pytest.approx(sent.bytes / 1e6)
    transfer.fetch(bucket, "x", tmp_path / "x", size=sent.bytes, digest=sent.digest, bandwidth=line)
    assert clock.now - 100 == pytest.approx(2 * sent.bytes / 1e6)


def test_an_object_has_no_more_parts_than_s3_takes() -> None:
    for size in (1, 37 << 30, 5 << 40):
        assert transfer.part_bytes(size) * 9_000 >= size
    assert transfer.part_bytes(37 << 30) == transfer.PART_BYTES


def test_the_checksum_is_the_one_that_servers_compute() -> None:
    """Whichever of the two modules does it: the check value of CRC-32/ISO-HDLC."""
    assert crc32(b"123456789") == 0xCBF43926
    data = random.Random(0).randbytes((1 << 20) + 7)
    assert crc32(memoryview(data)) == crc32(data) == zlib.crc32(data)


def test_a_part_in_flight_is_not_overwritten_by_the_next(
    bucket: Bucket, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are read into memory that is used again: while one is on its way, the next goes elsewhere."""
    real = MultipartUpload.send
    changed: list[int] = []

    def slow(self: MultipartUpload, number: int, data: multipart.Buffer, *, checksum: bool, before_write: Any) -> Part:
        before = digest.of_bytes(bytes(data))
        part = real(self, number, data, checksum=checksum, before_write=before_write)
        time.sleep(0.05)  # the next part has been read by then
        if digest.of_bytes(bytes(data)) != before:
            changed.append(number)
        return part

    monkeypatch.setattr(MultipartUpload, "send", slow)
    file = random_file(5 * PART + 1)
    assert transfer.send(file, bucket, "x").etag == transfer.etag_of(file)
    assert changed == []
