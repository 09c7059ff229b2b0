"""The uploader's thread while another one removes checkpoints, and at a defect."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from bafogpt.agent.attempt import Attempt
from bafogpt.agent.uploader import PartUploader, Uploader
from bafogpt.core import process
from bafogpt.runs.store import RunRecord
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import CHECKPOINT_META, Rendezvous
from tests.small_job import make_job


@pytest.fixture
def attempt(bucket: Bucket, tmp_path: Path) -> Attempt:
    record = RunRecord(name="run", trainer="pretrain", state="running", created="", updated="")
    return Attempt(make_job(), bucket, tmp_path, record, ())


@pytest.fixture
def folder(attempt: Attempt) -> Path:
    """A checkpoint on the node's disk."""
    partial = attempt.trainer_files.partial(5)
    partial.mkdir(parents=True)
    (partial / "state-001.json").write_text("{}")
    return attempt.trainer_files.commit(partial, {"step": 5, "samples": 20}, Rendezvous(id="0001-0001", nodes=2))


def test_a_folder_that_is_being_dropped_is_never_the_next_to_send(
    attempt: Attempt, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The uploader lists it on the disk, and asks whether it was sent when it is no longer there."""
    uploader = PartUploader(attempt, node=1)
    uploader.start()
    assert process.wait_until(uploader.all_sent, 30)
    uploader._closing.set()
    uploader._thread.join()
    pending = attempt.trainer_files.pending
    assert pending() == [folder]

    dropping = threading.Thread(target=uploader.drop_committed, args=(5,))

    def list_while_another_drops() -> list[Path]:
        found = pending()
        dropping.start()
        dropping.join(timeout=0.3)
        return found

    monkeypatch.setattr(attempt.trainer_files, "pending", list_while_another_drops)
    assert uploader._next() is None
    dropping.join()
    assert pending() == []


def test_a_defect_ends_the_run_instead_of_the_thread_alone(
    attempt: Attempt, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / CHECKPOINT_META).write_text(json.dumps("no checkpoint"))

    def refuse(_: Path) -> None:
        raise OSError("no such folder")

    monkeypatch.setattr(attempt.trainer_files, "drop", refuse)
    uploader = Uploader(attempt)
    uploader.start()
    assert process.wait_until(lambda: uploader.outage is not None, 30)
    assert uploader.outage is not None and uploader.outage.since == float("-inf")
    assert "unexpectedly" in uploader.outage.error.message
