"""The uploads' thread where another one tidies up beside it, and where it meets a defect."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent.multinode.heartbeat import CheckpointParts
from bafogpt.agent.uploader import PartUploader, Uploader
from bafogpt.core import process
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.trainer_io import CHECKPOINT_META, TrainerFiles


def saved(trainer_files: TrainerFiles, step: int) -> Path:
    """A checkpoint of a node on its disk."""
    partial = trainer_files.partial(step)
    partial.mkdir(parents=True)
    (partial / "state-001.json").write_text("{}")
    return trainer_files.commit(partial, {"step": step, "samples": 4 * step, "nodes": 2, "rendezvous_id": "0001-0001"})


def options(bucket: Bucket, trainer_files: TrainerFiles) -> dict[str, Any]:
    store = RunStore(bucket)
    return {
        "trainer_files": trainer_files,
        "store": store.checkpoints("run"),
        "config": CheckpointConfig(),
        "attempt": 1,
        "record": lambda *_, **__: None,
        "flush": lambda: None,
        "parts": CheckpointParts(store.folder("run")),
    }


def test_a_folder_that_is_being_dropped_is_never_the_next_to_send(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The uploads' thread has seen it on the disk, and asks whether it was sent when it no longer is."""
    trainer_files = TrainerFiles(tmp_path)
    committed = -1
    uploader = PartUploader(node=1, committed=lambda: committed, **options(bucket, trainer_files))
    folder = saved(trainer_files, 5)
    uploader.start()
    assert process.wait_until(uploader.settled, 30)
    uploader._closing.set()
    uploader._thread.join()
    assert trainer_files.pending() == [folder]

    committed = 5
    tidy = threading.Thread(target=uploader.tidy)
    listed = trainer_files.pending

    def list_while_another_tidies() -> list[Path]:
        found = listed()
        tidy.start()
        tidy.join(timeout=0.3)
        return found

    monkeypatch.setattr(trainer_files, "pending", list_while_another_tidies)
    assert uploader._next() is None
    tidy.join()
    assert listed() == []


def test_a_defect_ends_the_run_instead_of_the_thread_alone(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer_files = TrainerFiles(tmp_path)
    folder = saved(trainer_files, 5)
    (folder / CHECKPOINT_META).write_text(json.dumps("no checkpoint"))

    def refuse(_: Path) -> None:
        raise OSError("no such folder")

    monkeypatch.setattr(trainer_files, "drop", refuse)
    uploader = Uploader(**options(bucket, trainer_files))
    uploader.start()
    assert process.wait_until(lambda: uploader.outage is not None, 30)
    assert uploader.outage is not None and uploader.outage.since == float("-inf")
    assert "unexpectedly" in uploader.outage.error.message
