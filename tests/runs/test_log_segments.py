"""Append-only records in a store that cannot append."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bafogpt.runs import log_segments
from bafogpt.runs.log_segments import SegmentWriter
from bafogpt.storage.bucket import Bucket


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_segments, "PART_BYTES", 10)


def test_what_is_appended_arrives_in_order_and_full_parts_are_not_written_again(
    bucket: Bucket, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "log"
    mirror = SegmentWriter(bucket, "logs", 1, source, "log")
    assert mirror.flush() == 0
    written: list[str] = []
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, path, data, **o: (written.append(path), put(self, path, data, **o)))
    text = b""
    for piece in (b"abc", b"defghijklmnop", b"", b"q" * 25):
        text += piece
        with source.open("ab") as file:
            file.write(piece)
        assert mirror.flush() == len(piece)
        assert log_segments.read(bucket, "logs") == text
    assert written == [f"logs/0001-0000{n}.log" for n in (0, 0, 1, 1, 2, 3, 4)]


def test_a_feed_goes_on_where_its_earlier_process_stopped(bucket: Bucket, tmp_path: Path, small_parts: None):
    source = tmp_path / "log"
    for piece in (b"12345", b"6789012345678901234567890", b"x" * 5, b"y" * 10):
        with source.open("ab") as file:
            file.write(piece)
        SegmentWriter(bucket, "logs", 1, source, "log").flush()
    assert log_segments.read(bucket, "logs") == source.read_bytes()


def test_attempts_never_write_into_each_other(bucket: Bucket, tmp_path: Path):
    for attempt, text in ((1, "first\n"), (2, "second\n")):
        source = tmp_path / str(attempt)
        source.write_text(text)
        SegmentWriter(bucket, "logs", attempt, source, "log").flush()
    assert log_segments.read(bucket, "logs") == b"first\nsecond\n"


def test_a_line_cut_off_by_a_kill_is_skipped(bucket: Bucket, tmp_path: Path):
    source = tmp_path / "metrics"
    source.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo\n' + json.dumps({"step": 3}) + "\n")
    SegmentWriter(bucket, "metrics", 1, source, "jsonl").flush()
    assert [line["step"] for line in log_segments.read_lines(bucket, "metrics")] == [1, 3]


def test_a_feed_that_is_not_there_is_empty(bucket: Bucket):
    assert log_segments.read(bucket, "nothing") == b""


def test_nodes_of_one_attempt_write_parts_of_their_own(bucket: Bucket, tmp_path: Path, small_parts: None):
    sources = [tmp_path / f"log-{node}" for node in range(2)]
    sources[0].write_bytes(b"zero" * 5)
    sources[1].write_bytes(b"one." * 4)
    for _ in range(2):  # the second time as another process, which finds its own place
        for node, source in enumerate(sources):
            SegmentWriter(bucket, "logs", 1, source, "log", node).flush()
    assert log_segments.read(bucket, "logs") == b"zero" * 5 + b"one." * 4
