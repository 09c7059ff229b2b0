"""A checkpoint whose manifest is damaged is skipped, and the one before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.checkpoints.store import CheckpointStore

Save = Callable[[int], Checkpoint]


@pytest.fixture
def save(folder: Bucket, tmp_path: Path) -> Save:
    """``save(step)`` uploads a checkpoint of one file of 10 bytes."""

    def upload(step: int) -> Checkpoint:
        saved = tmp_path / f"saved-{step}"
        saved.mkdir()
        (saved / "weights").write_bytes(step.to_bytes(10, "big"))
        return CheckpointStore(folder).upload(saved, step=step, samples=step, upload_id="one", metadata={})

    return upload


def test_a_manifest_that_is_wrong_or_of_another_step_is_skipped(
    folder: Bucket, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(20), save(40)
    for data in (b"", b"{", newer.to_json()[:-9], replace(newer, step=41).to_json()):
        folder.put("step-00000040.json", data)
        assert CheckpointStore(folder).complete() == [older]
        assert "manifest skipped" in caplog.text
        caplog.clear()
    folder.put("step-00000040.json", newer.to_json())
    assert CheckpointStore(folder).complete() == [older, newer]


@pytest.mark.parametrize("wrong", [9, 11])
def test_a_manifest_with_a_wrong_size_is_a_damaged_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: int
) -> None:
    older, newer = save(1), save(2)
    changed = replace(newer, files=tuple(replace(each, bytes=wrong, etag="") for each in newer.files))
    folder.put("step-00000002.json", changed.to_json())
    found = CheckpointStore(folder).fetch_newest(tmp_path / "into")
    assert found is not None and found[0] == older
    assert "step-00000002 is damaged" in caplog.text
