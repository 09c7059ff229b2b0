from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, DiskFullError, NotFoundError, UnreachableError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer import download
from tests.storage.tools import record

Make = Callable[[int], Path]
Limit = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def stored(folder: Bucket, random_file: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[transfer.Sent, bytes]:
    """An object ``x`` of five small ranges."""
    monkeypatch.setattr(download, "RANGE_BYTES", 1000)
    file = random_file(4321)
    return transfer.send(file, folder, "x"), file.read_bytes()


def fail_at_fourth_range(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RANGES_IN_FLIGHT", 1)
    record(monkeypatch, bucket, "get_range", fail_at=4)


def test_an_interrupted_fetch_resumes_with_the_missing_ranges(
    folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, data = stored
    target = tmp_path / "into" / "x"
    with monkeypatch.context() as patch:
        fail_at_fourth_range(folder, patch)
        with pytest.raises(UnreachableError):
            transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest)
    assert not target.exists()
    moved: list[int] = []
    starts = record(monkeypatch, folder, "get_range", lambda path, start, length: start)
    transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest, progress=moved.append)
    assert starts == [3000, 4000]
    assert sum(moved) == sent.bytes
    assert target.read_bytes() == data
    assert os.listdir(target.parent) == ["x"]


@pytest.mark.parametrize("what", ["of another object", "journal torn", "journal only", "torn by a power cut"])
def test_a_partial_file_is_used_only_when_it_is_right(
    folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sent, data = stored
    folder.put("other", bytes(sent.bytes))
    target = tmp_path / "into" / "x"
    with monkeypatch.context() as patch:
        fail_at_fourth_range(folder, patch)
        path, content = (
            ("other", digest.of_bytes(bytes(sent.bytes))) if what == "of another object" else ("x", sent.digest)
        )
        with pytest.raises(UnreachableError):
            transfer.fetch(folder, path, target, size=sent.bytes, digest=content)
    partial, journal = target.with_name("x.partial"), target.with_name("x.partial.journal")
    if what == "journal torn":
        journal.write_bytes(b"\xff\xfe")
    elif what == "journal only":
        partial.unlink()
    elif what == "torn by a power cut":  # the journal says more than the disk holds
        partial.write_bytes(bytes(sent.bytes))
    transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest)
    assert target.read_bytes() == data
    assert os.listdir(target.parent) == ["x"]


def test_a_bit_that_flips_in_transit_is_fetched_again(
    folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, data = stored
    real = folder.get_range
    asked: list[int] = []
    moved: list[int] = []

    def flip(path: str, start: int, length: int) -> memoryview:
        asked.append(start)
        good = real(path, start, length)
        return memoryview(bytes([good[0] ^ 1]) + bytes(good[1:])) if start == 2000 and asked.count(2000) == 1 else good

    monkeypatch.setattr(folder, "get_range", flip)
    transfer.fetch(folder, "x", tmp_path / "x", size=sent.bytes, digest=sent.digest, progress=moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert sum(moved) == sent.bytes
    assert len(asked) == 10


def test_a_damaged_object_is_an_error_and_leaves_no_file(
    folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path
) -> None:
    sent, data = stored
    target = tmp_path / "into" / "x"
    for content in (data[:-1] + b"?", data[:1000], b""):
        folder.put("x", content)
        with pytest.raises(CorruptError):
            transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest)
        assert os.listdir(target.parent) == []
    folder.delete("x")
    with pytest.raises(NotFoundError):
        transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest)
    assert os.listdir(target.parent) == []


def test_without_a_digest_the_size_must_be_right(
    folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path
) -> None:
    sent, data = stored
    transfer.fetch(folder, "x", tmp_path / "x", size=sent.bytes, digest=None)
    assert (tmp_path / "x").read_bytes() == data
    with pytest.raises(CorruptError, match="has 4321 bytes, not 4320"):
        transfer.fetch(folder, "x", tmp_path / "y", size=sent.bytes - 1, digest=None)


def test_a_fetch_that_does_not_fit_leaves_nothing(
    full_disk: Limit, folder: Bucket, stored: tuple[transfer.Sent, bytes], tmp_path: Path
) -> None:
    sent, _ = stored
    target = tmp_path / "into" / "x"
    with full_disk(2000), pytest.raises(DiskFullError):
        transfer.fetch(folder, "x", target, size=sent.bytes, digest=sent.digest)
    assert os.listdir(target.parent) == []
