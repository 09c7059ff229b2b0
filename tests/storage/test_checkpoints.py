"""Checkpoints are uploaded whole or not at all, found, fetched, replaced when damaged, and retired."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import BafoError, ConflictError, CorruptError, UnreachableError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints import store as checkpoints
from bafogpt.storage.checkpoints.store import Checkpoint, CheckpointStore
from tests.storage.tools import content, damage, record

Save = Callable[..., Path]
SAME = {"config": b"always the same"}


def upload(store: CheckpointStore, folder: Path, step: int, upload_id: str = "", **metadata: Any) -> Checkpoint:
    return store.upload(folder, step=step, samples=step * 16, upload_id=upload_id or f"a1-{step}", metadata=metadata)


def object_of(checkpoint: Checkpoint, name: str = "weights") -> str:
    return next(file.object for file in checkpoint.files if file.name == name)


def uploaded(bucket: Bucket, save: Save, *steps: int) -> tuple[CheckpointStore, list[Checkpoint]]:
    """A store with those checkpoints; their weights differ, their configuration does not."""
    store = CheckpointStore(bucket)
    return store, [upload(store, save(step, weights=1900, **SAME), step) for step in steps]


def test_a_fetched_checkpoint_has_the_content_that_was_saved(anywhere: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(anywhere.child("runs/x/checkpoints"))
    folder = save(weights=1900, empty=b"")
    made = upload(store, folder, 40, attempt=1)
    assert store.complete() == [made]
    assert (made.step, made.samples, made.metadata) == (40, 640, {"attempt": 1})

    found = CheckpointStore(anywhere.child("runs/x/checkpoints")).fetch_newest(tmp_path / "into")
    assert found == (made, tmp_path / "into" / "step-00000040")
    assert content(found[1]) == content(folder)
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["step-00000040"]


def test_no_checkpoint_is_none(anywhere: Bucket, tmp_path: Path) -> None:
    store = CheckpointStore(anywhere)
    assert store.complete() == []
    assert store.fetch_newest(tmp_path) is None
    assert store.retain(last=1) == []
    with pytest.raises(ValueError, match="newest"):
        store.retain(last=0)


def test_the_manifest_comes_last_and_its_objects_lie_below_the_upload(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = record(monkeypatch, folder, "put")
    upload(CheckpointStore(folder), save(weights=10, **SAME), 40, "a0003-77")
    assert sorted(order[:2]) == ["step-00000040/a0003-77/config", "step-00000040/a0003-77/weights"]
    assert order[2:] == ["step-00000040.json"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_upload_that_fails_is_invisible_and_the_next_attempt_is_whole(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    store, (first,) = uploaded(folder, save, 20)
    saved = save(40, weights=1900, extra=b"new", **SAME)
    with monkeypatch.context() as patch, pytest.raises(UnreachableError):
        record(patch, folder, "put", fail_at=fails_at)
        upload(store, saved, 40)
    assert store.complete() == [first]
    assert store.fetch_newest(tmp_path / "into") == (first, tmp_path / "into" / "step-00000020")

    second = upload(store, saved, 40, "a0002")
    assert store.complete() == [first, second]
    assert content(store.fetch(second, tmp_path / "into")) == content(saved)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_unchanged_file_is_not_sent_again_unless_it_is_damaged(
    folder: Bucket, save: Save, tmp_path: Path, is_damaged: bool
) -> None:
    store, (first,) = uploaded(folder, save, 20)
    saved = save(40, weights=1900, **SAME)
    if is_damaged:
        damage(folder, object_of(first, "config"))
    second = upload(store, saved, 40)
    assert (object_of(second, "config") != object_of(first, "config")) == is_damaged
    assert folder.exists("step-00000040/a1-40/config") == is_damaged
    assert object_of(second) != object_of(first)
    assert content(store.fetch(second, tmp_path)) == content(saved)


def test_objects_are_read_back_before_the_manifest_is_written(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = folder.put
    monkeypatch.setattr(folder, "put", lambda path, data: put(path, data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(CorruptError, match="the data was corrupted in transit"):
        upload(CheckpointStore(folder), save(weights=100, **SAME), 40)
    assert CheckpointStore(folder).complete() == []
    assert not folder.exists("step-00000040.json")


def test_the_same_step_again_is_fine_with_the_same_content_and_a_conflict_otherwise(
    anywhere: Bucket, save: Save
) -> None:
    store, (made,) = uploaded(anywhere, save, 40)
    assert upload(store, save(40, weights=1900, **SAME), 40, "a0002") == made
    with pytest.raises(ConflictError, match="exists with other content"):
        upload(store, save(41, weights=1900, **SAME), 40, "a0003")
    assert store.complete() == [made]


def test_two_uploads_of_one_step_make_one_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival commits after the first one has listed the bucket, before it writes its manifest."""
    store, rival = CheckpointStore(folder), CheckpointStore(Bucket.open(folder.url))
    saved, put = save(weights=1900, **SAME), folder.put
    winner: list[Checkpoint] = []

    def slow(path: str, data: bytes, **options: Any) -> None:
        if path.endswith(".json") and "/" not in path and not winner:
            winner.append(upload(rival, saved, 40, "a0002"))
        put(path, data, **options)

    monkeypatch.setattr(folder, "put", slow)
    assert [upload(store, saved, 40, "a0001")] == winner == store.complete()
    winner.clear()
    folder.delete("step-00000040.json")
    with pytest.raises(ConflictError):
        upload(store, save(1, weights=1900, **SAME), 40, "a0003")
    assert content(rival.fetch(rival.complete()[0], tmp_path)) == content(saved)


@pytest.mark.parametrize("seed", [40, 41])
def test_a_damaged_checkpoint_is_repaired_by_the_same_content_and_replaced_by_other_content(
    folder: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    store, (damaged,) = uploaded(folder, save, 40)
    damage(folder, object_of(damaged))
    saved = save(seed, weights=1900, **SAME)
    made = upload(store, saved, 40, "a0002")
    assert (made == damaged) == (seed == 40)
    assert ("is damaged" in caplog.text) == (seed == 41)
    assert store.complete() == [made]
    assert content(store.fetch(made, tmp_path)) == content(saved)


@pytest.mark.parametrize("what", ["flipped", "missing", "short"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(
    anywhere: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    store, (older, newest) = uploaded(anywhere, save, 20, 40)
    path = object_of(newest)
    {
        "flipped": lambda: damage(anywhere, path),
        "missing": lambda: anywhere.delete(path),
        "short": lambda: anywhere.put(path, b"short"),
    }[what]()
    found = store.fetch_newest(tmp_path)
    assert found is not None
    assert found[0] == older
    assert "step-00000040 is damaged" in caplog.text
    assert os.listdir(tmp_path / "step-00000020")
    assert not (tmp_path / "step-00000040").exists()


def test_an_unreachable_server_is_not_answered_with_an_old_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = uploaded(folder, save, 20, 40)
    record(monkeypatch, transfer, "fetch", fail_at=1)
    with pytest.raises(UnreachableError):
        store.fetch_newest(tmp_path)


def test_right_files_are_not_fetched_again(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (made,) = uploaded(folder, save, 40)
    local = store.fetch(made, tmp_path)
    saved = content(local)
    fetched = record(monkeypatch, transfer, "fetch", lambda bucket, path, *_, **__: path)
    assert store.fetch(made, tmp_path) == local
    assert fetched == []

    (local / "weights").write_bytes(b"torn")
    (local / "stranger").write_bytes(b"?")
    assert content(store.fetch(made, tmp_path)) == saved
    assert fetched == [object_of(made)]


def test_an_interrupted_fetch_resumes(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (made,) = uploaded(folder, save, 40)
    with monkeypatch.context() as patch, pytest.raises(UnreachableError):
        record(patch, transfer, "fetch", fail_at=2)
        patch.setattr(checkpoints, "DOWNLOADS_AT_ONCE", 1)  # the large one first
        store.fetch(made, tmp_path / "into")
    assert not (tmp_path / "into" / "step-00000040").exists()
    fetched = record(monkeypatch, transfer, "fetch", lambda bucket, path, *_, **__: path)
    assert set(content(store.fetch(made, tmp_path / "into"))) == {"weights", "config"}
    assert fetched == [object_of(made, "config")]


def test_retention_keeps_the_newest_and_the_milestones_and_every_object_they_name(
    anywhere: Bucket, save: Save, tmp_path: Path
) -> None:
    store, made = uploaded(anywhere, save, 10, 20, 30, 40, 50)
    assert store.retain(last=2, every=20) == [10, 30]
    kept = [made[1], made[3], made[4]]
    assert store.complete() == kept
    for each in kept:
        store.fetch(each, tmp_path)
    named = {file.object for each in kept for file in each.files}
    assert {info.path for info in anywhere.list()} == named | {f"{each.name}.json" for each in kept}
    assert object_of(made[4], "config").startswith("step-00000010/")
    assert store.retain(last=2, every=20) == []


def test_retention_removes_manifests_before_objects(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = uploaded(folder, save, 10, 20, 30)
    order = record(monkeypatch, folder, "delete")
    store.retain(last=1)
    assert order[:2] == ["step-00000010.json", "step-00000020.json"]
    assert [path.rpartition("/")[2] for path in order[2:]] == ["weights", "weights"]


def test_retention_removes_leftovers_of_uploads_but_none_that_may_be_running(folder: Bucket, save: Save) -> None:
    store, _ = uploaded(folder, save, 40)
    for path in ("step-00000020/a0001/x", "step-00000040/a0000/x", "step-00000060/a0002/x", "notes.txt"):
        folder.put(path, b"")
    assert store.retain(last=1) == []
    assert [info.path for info in folder.list() if info.path.endswith("/x")] == ["step-00000060/a0002/x"]
    assert folder.exists("notes.txt")


def test_the_best_by_a_metric_is_kept(folder: Bucket, save: Save) -> None:
    store = CheckpointStore(folder)
    losses = {10: 3.0, 20: 2.0, 30: 2.0, 40: float("nan"), 50: "none", 60: 2.5, 70: True}
    for step, loss in losses.items():
        upload(store, save(step, a=10), step, validation_loss=loss)
    upload(store, save(80, a=10), 80)
    assert store.retain(last=1, every=60, best="validation_loss") == [10, 20, 40, 50, 70]
    assert [each.step for each in store.complete()] == [30, 60, 80]
    assert store.retain(last=1, every=60, best="no such metric") == [30]
    assert store.retain(last=1) == [60]


def test_only_flat_folders_of_regular_files_with_plain_names_are_checkpoints(
    folder: Bucket, save: Save, tmp_path: Path
) -> None:
    linked, nested, empty = save(a=1), save(a=1), save()
    os.symlink("/etc/passwd", linked / "link")
    (nested / "sub").mkdir()
    named = [save(**{name: 1}) for name in ("a.partial", "a\\b", "x.partial.journal")]
    for bad in (linked, nested, empty, *named):
        with pytest.raises(BafoError, match=r"not a regular file|is empty|cannot be part of a checkpoint"):
            upload(CheckpointStore(folder), bad, 40)
    assert folder.list() == []
