"""Checkpoints on the Hub while a run goes on; a Hub that fails never ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bafogpt.agent.hub_publisher import HubPublisher
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore

from .conftest import REPO, Copy, content
from .server import Hub


def commit(store: CheckpointStore, folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"%d" % step * 1000)
    store.upload(folder, step=step, samples=step, upload_id=f"u{step}", metadata={})


def test_the_newest_checkpoint_is_published_and_a_failure_is_an_event(
    bucket: Bucket, hub: Hub, settings: Settings, copy: Copy, tmp_path: Path, monkeypatch: Any
):
    checkpoints = bucket.child("runs/r/checkpoints")
    store = CheckpointStore(checkpoints)
    events: list[dict[str, Any]] = []
    publisher = HubPublisher(
        checkpoints, REPO, settings, lambda kind, **values: events.append({"event": kind, **values})
    )
    for step in (20, 40):
        commit(store, tmp_path / "saved", step)
        publisher.publish(step)  # both before it starts: the first is not worth a push any more
    publisher.start()
    assert publisher.close(60)
    assert [(event["event"], event["step"]) for event in events] == [("published", 40)]
    assert events[0]["commit"]
    copy(REPO, tmp_path / "pulled")
    assert content(tmp_path / "pulled")["weights.safetensors"] == b"40" * 1000

    monkeypatch.setenv("HF_TOKEN", "of-nobody")
    refused = HubPublisher(checkpoints, REPO, settings, lambda kind, **values: events.append({"event": kind, **values}))
    refused.start()
    refused.publish(60)
    assert refused.close(60)
    assert events[-1]["event"] == "publication_failed"
    assert "of-nobody" not in events[-1]["error"]
