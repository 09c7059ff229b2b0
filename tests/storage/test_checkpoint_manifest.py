"""A checkpoint's manifest is believed only when every byte and every word of it is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import Checkpoint, CheckpointFile
from bafogpt.storage.checkpoints.store import CheckpointStore

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save(step)`` is a checkpoint folder of that step."""

    def make(step: int) -> Path:
        folder = tmp_path / f"saved-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(step.to_bytes(10, "big"))
        return folder

    return make


def _upload(store: CheckpointStore, folder: Path, step: int) -> Checkpoint:
    return store.upload(folder, step=step, samples=step, upload_id="one", metadata={})


def _manifest(folder: Bucket, save: Save) -> dict[str, Any]:
    _upload(CheckpointStore(folder), save(20), 20)
    plain: dict[str, Any] = json.loads(_upload(CheckpointStore(folder), save(40), 40).to_json())
    del plain["digest"]
    return plain


def _sealed(plain: dict[str, Any]) -> bytes:
    """A manifest whose own digest is right, whatever it says."""
    return json.dumps(plain | {"digest": digest.of_bytes(json.dumps(plain, sort_keys=True).encode())}).encode()


def test_a_manifest_that_says_nothing_wrong_is_believed(folder: Bucket, save: Save) -> None:
    folder.put("step-00000040.json", _sealed(_manifest(folder, save)))
    assert [each.step for each in CheckpointStore(folder).complete()] == [20, 40]


@pytest.mark.parametrize("key", ["name", "object"])
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../b", "", "a\\b"])
def test_unsafe_names_in_a_manifest_are_refused(
    folder: Bucket, save: Save, caplog: pytest.LogCaptureFixture, name: str, key: str
) -> None:
    plain = _manifest(folder, save)
    plain["files"][0][key] = name
    folder.put("step-00000040.json", _sealed(plain))
    assert [each.step for each in CheckpointStore(folder).complete()] == [20]
    assert "manifest skipped" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"format": "bafogpt.checkpoint/2"},
        {"step": "40"},
        {"step": 41},
        {"samples": -1},
        {"files": []},
        {"files": [{"name": "x"}]},
        {"files": [{"name": "x", "bytes": "1", "digest": "blake3:0", "object": "x"}]},
        {"files": [{"name": "sub/x", "bytes": 1, "digest": "blake3:0", "object": "x"}]},
        {"metadata": None},
        {"unknown": 1},
    ],
)
def test_a_manifest_that_is_wrong_is_skipped(
    folder: Bucket, save: Save, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    folder.put("step-00000040.json", _sealed(_manifest(folder, save) | change))
    assert [each.step for each in CheckpointStore(folder).complete()] == [20]
    assert "manifest skipped" in caplog.text


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff"])
def test_what_is_not_a_manifest_is_skipped(folder: Bucket, save: Save, data: bytes) -> None:
    _upload(CheckpointStore(folder), save(20), 20)
    folder.put("step-00000040.json", data)
    assert [each.step for each in CheckpointStore(folder).complete()] == [20]


def test_no_flipped_bit_makes_another_checkpoint_of_a_manifest() -> None:
    file = CheckpointFile("a", 10, "blake3:00", "step-00000007/one/a", "etag")
    checkpoint = Checkpoint(7, 112, "2026-01-01T00:00:00+00:00", "one", (file,), {"loss": 1.25})
    data = checkpoint.to_json()
    assert Checkpoint.from_json(data, "here") == checkpoint
    for place in range(len(data)):
        for bit in (0, 4):
            flipped = data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
            try:
                assert Checkpoint.from_json(flipped, "here") == checkpoint  # white space may change
            except CorruptError:
                continue


@pytest.mark.parametrize(
    "files",
    [
        [("a", "x/a"), ("a", "x/b")],
        [("a.partial", "x/a")],
        [("a.partial.journal", "x/a")],
        [("../a", "x/a")],
        [("a", "/x/a")],
        [("a/b", "x/a")],
    ],
)
def test_a_manifest_with_unsafe_or_double_names_is_refused(files: list[tuple[str, str]]) -> None:
    listed = tuple(CheckpointFile(name, 1, "blake3:00", path) for name, path in files)
    with pytest.raises(CorruptError):
        Checkpoint.from_json(Checkpoint(7, 1, "", "one", listed, {}).to_json(), "here")


def test_a_manifest_that_says_a_wrong_size_is_a_damaged_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(folder)
    older, newer = _upload(store, save(1), 1), _upload(store, save(2), 2)
    for wrong in (9, 11):
        listed = tuple(CheckpointFile(each.name, wrong, each.digest, each.object) for each in newer.files)
        changed = Checkpoint(2, 2, newer.created, newer.upload_id, listed, {})
        folder.put("step-00000002.json", changed.to_json())
        found = CheckpointStore(folder).fetch_newest(tmp_path / f"into-{wrong}")
        assert found is not None
        assert found[0] == older
        assert "step-00000002 is damaged" in caplog.text
