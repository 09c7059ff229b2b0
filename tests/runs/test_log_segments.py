"""Append-only records in a store that cannot append: every byte arrives once, and every line is read once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bafogpt.runs import log_segments
from bafogpt.runs.log_segments import SegmentReader, SegmentWriter, read_bytes
from bafogpt.storage.bucket import Bucket


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_segments, "PART_BYTES", 10)


def test_appended_bytes_arrive_in_order_and_full_parts_are_not_written_again(
    bucket: Bucket, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "source.log"
    writer = SegmentWriter(bucket, "logs", 1, source)
    assert writer.flush() == 0
    written: list[str] = []
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, path, data, **o: (written.append(path), put(self, path, data, **o)))
    text = b""
    for piece in (b"abc", b"defghijklmnop", b"", b"q" * 25):
        text += piece
        with source.open("ab") as file:
            file.write(piece)
        assert writer.flush() == len(piece)
        assert read_bytes(bucket, "logs") == text
    assert written == [f"logs/0001-0000{n}.log" for n in (0, 0, 1, 1, 2, 3, 4)]


def test_a_writer_continues_where_an_earlier_process_stopped(bucket: Bucket, tmp_path: Path, small_parts: None):
    source = tmp_path / "source.log"
    for piece in (b"12345", b"6789012345678901234567890", b"x" * 5, b"y" * 10):
        with source.open("ab") as file:
            file.write(piece)
        SegmentWriter(bucket, "logs", 1, source).flush()
    assert read_bytes(bucket, "logs") == source.read_bytes()


def test_attempts_and_nodes_write_parts_of_their_own(bucket: Bucket, tmp_path: Path, small_parts: None):
    texts = {(1, 0): b"zero" * 5, (1, 1): b"one." * 4, (2, 0): b"next"}
    for _ in range(2):  # the second time as another process
        for (attempt, node), text in texts.items():
            source = tmp_path / f"{attempt}-{node}.log"
            source.write_bytes(text)
            SegmentWriter(bucket, "logs", attempt, source, node).flush()
    assert read_bytes(bucket, "logs") == b"".join(texts.values())


def write(path: Path, first: int, last: int) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"n": number}) + "\n" for number in range(first, last))


def numbers(reader: SegmentReader) -> list[int]:
    return [line["n"] for line in reader.read()]


def test_each_line_is_read_once_and_one_that_is_cut_by_a_flush_or_a_part_stays_whole(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_segments, "PART_BYTES", 100)  # some nine lines: most parts begin within one
    source = tmp_path / "lines.jsonl"
    writer, reader = SegmentWriter(bucket, "metrics", 1, source), SegmentReader(bucket, "metrics")
    assert numbers(reader) == []
    write(source, 0, 50)
    with source.open("a") as file:
        file.write('{"n": 5')
    writer.flush()
    assert numbers(reader) == list(range(50))
    with source.open("a") as file:
        file.write("0}\n")
    write(source, 51, 80)
    writer.flush()
    assert numbers(reader) == list(range(50, 80))
    assert numbers(reader) == []


def test_lines_that_a_kill_cut_off_are_skipped_and_do_not_mix_with_other_writers(bucket: Bucket):
    bucket.put("m/0001-00000.jsonl", b'{"n": 1}\n{"n": ')
    bucket.put("m/0001-n1-00000.jsonl", b'{"n": 2}\n{"n\n{"n"')
    reader = SegmentReader(bucket, "m")
    assert numbers(reader) == [1, 2]
    bucket.put("m/0002-00000.jsonl", b'{"n": 3}\n')
    bucket.put("m/0001-n1-00000.jsonl", b'{"n": 2}\n{"n\n{"n": 4}\n')
    assert numbers(reader) == [4, 3]
    assert numbers(SegmentReader(bucket, "m", attempt=1)) == [1]
    assert SegmentReader(bucket, "nothing").read() == []


def test_a_tail_is_the_end_of_the_lines_and_what_comes_after(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_segments, "PART_BYTES", 100)
    source = tmp_path / "lines.jsonl"
    writer = SegmentWriter(bucket, "metrics", 1, source)
    write(source, 10, 99)  # of 10 bytes each
    writer.flush()
    reader = SegmentReader(bucket, "metrics", tail_bytes=145)
    assert numbers(reader) == list(range(85, 99))  # the line that the tail begins in is left out
    write(source, 99, 101)
    writer.flush()
    assert numbers(reader) == [99, 100]
