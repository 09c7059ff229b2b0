"""A feed is read as it grows: every line once, whatever the parts and the writers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bafogpt.runs import log_segments
from bafogpt.runs.log_segments import SegmentReader, SegmentWriter
from bafogpt.storage.bucket import Bucket


def write(path: Path, first: int, last: int) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"n": number}) + "\n" for number in range(first, last))


def numbers(follower: SegmentReader) -> list[int]:
    return [line["n"] for line in follower.read()]


def test_each_line_is_read_once_and_one_that_is_cut_by_a_sending_or_a_part_stays_whole(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_segments, "PART_BYTES", 100)  # some nine lines: most parts begin within one
    source = tmp_path / "lines.jsonl"
    writer, follower = SegmentWriter(bucket, "metrics", 1, source, "jsonl"), SegmentReader(bucket, "metrics")
    assert numbers(follower) == []
    write(source, 0, 50)
    with source.open("a") as file:
        file.write('{"n": 5')
    writer.flush()
    assert numbers(follower) == list(range(50))
    with source.open("a") as file:
        file.write("0}\n")
    write(source, 51, 80)
    writer.flush()
    assert numbers(follower) == list(range(50, 80))
    assert numbers(follower) == []


def test_the_writers_of_two_attempts_and_two_nodes_do_not_mix_their_cut_lines(bucket: Bucket):
    bucket.put("m/0001-00000.jsonl", b'{"n": 1}\n{"n": ')
    bucket.put("m/0001-n1-00000.jsonl", b'{"n": 2}\n{"n"')
    follower = SegmentReader(bucket, "m")
    assert numbers(follower) == [1, 2]
    bucket.put("m/0002-00000.jsonl", b'{"n": 3}\n')
    bucket.put("m/0001-n1-00000.jsonl", b'{"n": 2}\n{"n": 4}\n')
    assert numbers(follower) == [4, 3]


def test_a_tail_is_the_end_of_the_feed_and_what_comes_after(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_segments, "PART_BYTES", 100)
    source = tmp_path / "lines.jsonl"
    writer = SegmentWriter(bucket, "metrics", 1, source, "jsonl")
    write(source, 10, 99)  # of 10 bytes each
    writer.flush()
    follower = SegmentReader(bucket, "metrics", tail_bytes=145)
    assert numbers(follower) == list(range(85, 99))  # the line that the tail begins in is left out
    write(source, 99, 101)
    writer.flush()
    assert numbers(follower) == [99, 100]
