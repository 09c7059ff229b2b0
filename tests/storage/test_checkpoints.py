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

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save(step, weights=b"…")`` is a local folder as the trainer leaves it."""

    def make(step: int, weights: bytes | None = None, **others: bytes) -> Path:
        folder = tmp_path / f"saved-{step}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(weights or f"weights of {step}".encode() * 100)
        (folder / "config.json").write_bytes(b"always the same")
        for name, content in others.items():
            (folder / name).write_bytes(content)
        return folder

    return make


def _upload(store: CheckpointStore, folder: Path, step: int, upload_id: str = "") -> Checkpoint:
    upload_id = upload_id or f"a0001-{step}"
    return store.upload(folder, step=step, samples=step * 16, upload_id=upload_id, metadata={"attempt": 1})


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _damage(bucket: Bucket, path: str) -> None:
    data = bytearray(bucket.get(path))
    data[len(data) // 2] ^= 1
    bucket.put(path, bytes(data))


def _object(checkpoint: Checkpoint, name: str = "weights.safetensors") -> str:
    return next(file.object for file in checkpoint.files if file.name == name)


def _record_calls(bucket: Bucket, method: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that ``method`` is called with from now on."""
    paths: list[str] = []
    real = getattr(bucket, method)

    def recorded(path: str, *arguments: Any, **options: Any) -> Any:
        paths.append(path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(bucket, method, recorded)
    return paths


def _record_fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that are fetched from now on."""
    paths: list[str] = []
    real = transfer.fetch

    def recorded(bucket: Bucket, path: str, *arguments: Any, **options: Any) -> None:
        paths.append(path)
        real(bucket, path, *arguments, **options)

    monkeypatch.setattr(transfer, "fetch", recorded)
    return paths


def test_what_was_saved_is_what_is_fetched(anywhere: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(anywhere.child("runs/x/checkpoints"))
    folder = save(40, empty=b"")
    made = _upload(store, folder, 40)
    assert store.complete() == [made]
    assert (made.step, made.samples, made.metadata) == (40, 640, {"attempt": 1})

    found = CheckpointStore(anywhere.child("runs/x/checkpoints")).fetch_newest(tmp_path / "into")
    assert found == (made, tmp_path / "into" / "step-00000040")
    assert _content(found[1]) == _content(folder)
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["step-00000040"]


def test_no_checkpoint_is_none(anywhere: Bucket, tmp_path: Path) -> None:
    store = CheckpointStore(anywhere)
    assert store.complete() == []
    assert store.fetch_newest(tmp_path) is None
    assert store.retain(last=1) == []


def test_the_manifest_comes_last_and_its_objects_lie_below_the_upload(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _record_calls(folder, "put", monkeypatch)
    _upload(CheckpointStore(folder), save(40), 40, "a0003-77")
    assert sorted(order[:2]) == ["step-00000040/a0003-77/config.json", "step-00000040/a0003-77/weights.safetensors"]
    assert order[2:] == ["step-00000040.json"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_upload_that_does_not_finish_is_invisible_and_the_next_try_is_whole(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    store = CheckpointStore(folder)
    first = _upload(store, save(20), 20)
    calls = 0
    put = folder.put

    def failing(path: str, *arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise UnreachableError("the line is cut", "wait")
        put(path, *arguments, **options)

    saved = save(40, extra=b"new")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "put", failing)
        with pytest.raises(UnreachableError):
            _upload(store, saved, 40)
    assert store.complete() == [first]
    assert store.fetch_newest(tmp_path / "into") == (first, tmp_path / "into" / "step-00000020")

    second = _upload(store, saved, 40, "a0002")
    assert store.complete() == [first, second]
    assert _content(store.fetch(second, tmp_path / "into")) == _content(saved)


def test_an_unchanged_file_is_not_sent_again(folder: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(folder)
    first, saved = _upload(store, save(20), 20), save(40)
    second = _upload(store, saved, 40)
    assert _object(second, "config.json") == _object(first, "config.json")
    assert _object(second) != _object(first)
    assert not folder.exists("step-00000040/a0001-40/config.json")
    assert _content(store.fetch(second, tmp_path)) == _content(saved)


def test_a_damaged_object_is_not_named_again(folder: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(folder)
    _damage(folder, _object(_upload(store, save(20), 20), "config.json"))
    saved = save(40)
    assert _content(store.fetch(_upload(store, saved, 40), tmp_path)) == _content(saved)


def test_what_arrives_is_read_back_before_the_manifest_is_written(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = folder.put

    def flipping(path: str, data: bytes, **options: Any) -> None:
        put(path, data[:-1] + bytes([data[-1] ^ 1]), **options)

    monkeypatch.setattr(folder, "put", flipping)
    with pytest.raises(CorruptError, match="what arrived is not what was sent"):
        _upload(CheckpointStore(folder), save(40), 40)
    # the other file may have been between its arrival and its verification when the first one failed: gc takes it
    assert CheckpointStore(folder).complete() == []
    assert not [each for each in folder.list() if each.path.endswith("manifest.json")]


def test_the_same_step_again_is_fine_when_it_is_the_same_and_a_conflict_otherwise(anywhere: Bucket, save: Save) -> None:
    store = CheckpointStore(anywhere)
    made = _upload(store, save(40), 40, "a0001")
    assert _upload(store, save(40), 40, "a0002") == made
    with pytest.raises(ConflictError, match="exists with other content"):
        _upload(store, save(40, weights=b"others"), 40, "a0003")
    assert store.complete() == [made]


def test_two_uploaders_of_one_step_make_one_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late one wakes up between its look at the bucket and its manifest."""
    store, rival = CheckpointStore(folder), CheckpointStore(Bucket.open(folder.url))
    saved = save(40)
    put = folder.put
    winner: list[Checkpoint] = []

    def slow(path: str, data: bytes, **options: Any) -> None:
        if path.endswith(".json") and "/" not in path and not winner:
            winner.append(_upload(rival, saved, 40, "a0002"))
        put(path, data, **options)

    monkeypatch.setattr(folder, "put", slow)
    assert [_upload(store, saved, 40, "a0001")] == winner == store.complete()
    winner.clear()
    folder.delete("step-00000040.json")
    with pytest.raises(ConflictError):
        _upload(store, save(40, weights=b"others"), 40, "a0003")
    assert _content(rival.fetch(rival.complete()[0], tmp_path)) == _content(saved)


def test_a_damaged_checkpoint_is_mended_by_the_same_step_trained_again(
    folder: Bucket, save: Save, tmp_path: Path
) -> None:
    store = CheckpointStore(folder)
    made = _upload(store, save(40), 40, "a0001")
    _damage(folder, _object(made))
    assert _upload(store, save(40), 40, "a0002") == made
    assert store.fetch_newest(tmp_path) is not None


def test_a_damaged_checkpoint_gives_way_to_other_content(
    folder: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(folder)
    _damage(folder, _object(_upload(store, save(40), 40, "a0001")))
    saved = save(40, weights=b"not bit-equal")
    made = _upload(store, saved, 40, "a0002")
    assert "is damaged" in caplog.text
    assert store.complete() == [made]
    assert _content(store.fetch(made, tmp_path)) == _content(saved)


@pytest.mark.parametrize("what", ["flipped", "missing", "short"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(
    anywhere: Bucket, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    store = CheckpointStore(anywhere)
    older, newest = _upload(store, save(20), 20), _upload(store, save(40), 40)
    path = _object(newest)
    if what == "flipped":
        _damage(anywhere, path)
    elif what == "missing":
        anywhere.delete(path)
    else:
        anywhere.put(path, b"short")
    found = store.fetch_newest(tmp_path)
    assert found is not None
    assert found[0] == older
    assert "step-00000040 is damaged" in caplog.text
    assert not (tmp_path / "step-00000040").exists()


def test_an_unreachable_server_is_not_answered_with_an_old_checkpoint(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(folder)
    _upload(store, save(20), 20)
    _upload(store, save(40), 40)

    def fail(*_: Any, **__: Any) -> None:
        raise UnreachableError("gone", "wait")

    monkeypatch.setattr(transfer, "fetch", fail)
    with pytest.raises(UnreachableError):
        store.fetch_newest(tmp_path)


def test_files_that_are_right_already_are_not_fetched_again(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(folder)
    saved = save(40)
    made = _upload(store, saved, 40)
    local = store.fetch(made, tmp_path)
    fetched = _record_fetches(monkeypatch)
    assert store.fetch(made, tmp_path) == local
    assert fetched == []

    (local / "weights.safetensors").write_bytes(b"torn")
    (local / "stranger").write_bytes(b"?")
    assert _content(store.fetch(made, tmp_path)) == _content(saved)
    assert fetched == [_object(made)]


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(
    folder: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(folder)
    saved = save(40)
    made = _upload(store, saved, 40)
    fetch = transfer.fetch

    def cut_off(bucket: Bucket, path: str, file: Path, **options: Any) -> None:
        if path.endswith("config.json"):
            raise UnreachableError("gone", "wait")
        fetch(bucket, path, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "fetch", cut_off)
        patch.setattr(checkpoints, "DOWNLOADS_AT_ONCE", 1)  # the big one first
        with pytest.raises(UnreachableError):
            store.fetch(made, tmp_path)
    assert not (tmp_path / "step-00000040").exists()
    fetched = _record_fetches(monkeypatch)
    assert _content(store.fetch(made, tmp_path)) == _content(saved)
    assert fetched == [_object(made, "config.json")]


def test_retention_keeps_the_newest_and_the_milestones_and_every_object_they_name(
    anywhere: Bucket, save: Save, tmp_path: Path
) -> None:
    store = CheckpointStore(anywhere)
    made = {step: _upload(store, save(step), step) for step in (10, 20, 30, 40, 50)}
    assert store.retain(last=2, every=20) == [10, 30]
    assert [each.step for each in store.complete()] == [20, 40, 50]
    for step in (20, 40, 50):
        store.fetch(made[step], tmp_path)
    named = {file.object for each in store.complete() for file in each.files}
    objects = {info.path for info in anywhere.list()}
    assert objects == named | {f"step-{step:08d}.json" for step in (20, 40, 50)}
    assert _object(made[50], "config.json").startswith("step-00000010/")
    assert store.retain(last=2, every=20) == []


def test_retention_removes_manifests_before_objects(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(folder)
    for step in (10, 20, 30):
        _upload(store, save(step), step)
    order = _record_calls(folder, "delete", monkeypatch)
    store.retain(last=1)
    assert order[:2] == ["step-00000010.json", "step-00000020.json"]
    assert all(path.endswith(".safetensors") for path in order[2:])
    assert len(order) == 4


def test_retention_clears_what_unfinished_uploads_left_but_none_that_may_be_going_on(
    folder: Bucket, save: Save
) -> None:
    store = CheckpointStore(folder)
    _upload(store, save(40), 40)
    for path in ("step-00000020/a0001/x", "step-00000040/a0000/x", "step-00000060/a0002/x", "notes.txt"):
        folder.put(path, b"")
    assert store.retain(last=1) == []
    left = [info.path for info in folder.list() if info.path.endswith("/x")]
    assert left == ["step-00000060/a0002/x"]
    assert folder.exists("notes.txt")


def test_the_newest_is_never_retired(folder: Bucket) -> None:
    with pytest.raises(ValueError, match="newest"):
        CheckpointStore(folder).retain(last=0)


def test_only_flat_folders_of_regular_files_are_checkpoints(folder: Bucket, save: Save, tmp_path: Path) -> None:
    linked, nested, empty = save(1), save(2), tmp_path / "empty"
    os.symlink("/etc/passwd", linked / "link")
    (nested / "sub").mkdir()
    empty.mkdir()
    for bad in (linked, nested, empty):
        with pytest.raises(BafoError):
            _upload(CheckpointStore(folder), bad, 40)
    assert folder.list() == []
