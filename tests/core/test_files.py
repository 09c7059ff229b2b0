"""Local files are whole, safely named, and a full disk is called by its name."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bafogpt.core import digest, files
from bafogpt.core.errors import CorruptError, DiskFullError


def test_an_atomic_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch):
    target = tmp_path / "record.json"
    files.write_atomic(target, "old")

    def no_rename(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", no_rename)
    with pytest.raises(DiskFullError):
        files.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "a//b", "", ".", "a\\b", "a\0b"])
def test_names_that_could_leave_their_folder_are_refused(name: str):
    with pytest.raises(CorruptError, match="unsafe"):
        files.safe_relative(name)


def test_a_plain_name_is_safe():
    assert str(files.safe_relative("step-1/rank-0.safetensors")) == "step-1/rank-0.safetensors"


def test_missing_space_is_said_before_anything_is_written(tmp_path: Path):
    with pytest.raises(DiskFullError, match="needs"):
        files.require_space(tmp_path, 1 << 62, "a checkpoint")
    files.require_space(tmp_path, 1, "a checkpoint")


@pytest.mark.parametrize("algorithm", ["xxh3", "blake3"])
def test_a_digest_finds_one_changed_bit(tmp_path: Path, algorithm: digest.Algorithm):
    file = tmp_path / "x"
    file.write_bytes(b"isiZulu" * 1000)
    said = digest.of_file(file, algorithm)
    assert said == digest.of_bytes(b"isiZulu" * 1000, algorithm)
    assert digest.matches(file, said)
    file.write_bytes(b"isiZulu" * 999 + b"isiZulv")
    assert not digest.matches(file, said)


def test_an_unknown_digest_algorithm_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(CorruptError, match="md5"):
        digest.matches(tmp_path / "x", "md5:00")
