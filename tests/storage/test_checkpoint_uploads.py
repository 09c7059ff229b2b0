"""Which files an upload sends, how it uses what an earlier attempt has sent, and two writers of one step."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import AuthError, ConflictError, CorruptError, DiskFullError, UnreachableError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.transfer import multipart
from tests.storage.tools import content, record

PART = 5 << 20
Save = Callable[..., Path]
Limit = Callable[[int], AbstractContextManager[None]]


def _upload(store: CheckpointStore, folder: Path, step: int, upload_id: str = "one", **metadata: Any) -> Checkpoint:
    return store.upload(folder, step=step, samples=step, upload_id=upload_id, metadata=metadata)


FOUR = {"a": 4000, "b": 4000, "c": 4000, "d": 10}


def TARGET(file: Path, bucket: Bucket, path: str, **_: Any) -> str:
    return path


def test_an_unchanged_checkpoint_is_neither_sent_nor_read(
    anywhere: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = CheckpointStore(anywhere), save(**FOUR)
    first = _upload(store, folder, 1)
    sent = record(monkeypatch, transfer, "send", TARGET)
    monkeypatch.setattr(anywhere, "chunks", None)
    moved: list[int] = []
    second = store.upload(folder, step=2, samples=2, upload_id="two", metadata={}, progress=moved.append)
    assert sent == []
    assert sum(moved) == sum(FOUR.values())
    assert second.files == first.files
    assert content(store.fetch(second, tmp_path / "into")) == content(folder)


def test_of_four_files_only_the_changed_one_is_sent(
    anywhere: Bucket, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = CheckpointStore(anywhere), save(**FOUR)
    _upload(store, folder, 1)
    (folder / "b").write_bytes(bytes(FOUR["b"]))
    sent = record(monkeypatch, transfer, "send", TARGET)
    second = _upload(CheckpointStore(anywhere), folder, 2, "two")
    assert sent == ["step-00000002/two/b"]
    assert content(store.fetch(second, tmp_path / "into")) == content(folder)


def test_files_that_changed_places_are_not_sent(folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    store, saved = CheckpointStore(folder), save(**FOUR)
    _upload(store, saved, 1)
    (saved / "a").rename(saved / "x")
    (saved / "b").rename(saved / "a")
    (saved / "x").rename(saved / "b")
    sent = record(monkeypatch, transfer, "send", TARGET)
    second = _upload(store, saved, 2)
    assert sent == []
    assert {file.name: file.object.rpartition("/")[2] for file in second.files} == {
        "a": "b",
        "b": "a",
        "c": "c",
        "d": "d",
    }


def test_an_object_that_was_written_again_is_read_before_it_is_named(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ETag is new: the same content is named again, other content is not."""
    store, saved = CheckpointStore(folder), save(**FOUR)
    first = _upload(store, saved, 1)
    objects = {file.name: file.object for file in first.files}
    folder.put(objects["a"], (saved / "a").read_bytes())
    folder.put(objects["b"], bytes(FOUR["b"]))
    sent = record(monkeypatch, transfer, "send", TARGET)
    second = {file.name: file for file in _upload(store, saved, 2, "two").files}
    assert sent == [second["b"].object] == ["step-00000002/two/b"]
    assert second["a"].object == objects["a"]
    assert second["a"].etag == folder.info(objects["a"]).etag


def test_a_file_of_a_new_size_is_read_once(folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    from bafogpt.core import digest

    hashed: list[str] = []
    of_file = digest.of_file
    monkeypatch.setattr(digest, "of_file", lambda path: hashed.append(path.name) or of_file(path))
    store = CheckpointStore(folder)
    _upload(store, save(a=100, b=200), 1)
    assert hashed == []
    _upload(store, save(a=100, b=201), 2)
    assert hashed == ["a"]


def test_a_file_that_changes_while_it_is_sent_is_an_error(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, saved = CheckpointStore(folder), save(a=100)
    _upload(store, save(seed=1, a=100), 1)
    real = transfer.send

    def late(file: Path, *arguments: Any, **options: Any) -> transfer.Sent:
        file.write_bytes(bytes(100))
        return real(file, *arguments, **options)

    monkeypatch.setattr(transfer, "send", late)
    with pytest.raises(CorruptError, match="changed while it was sent"):
        _upload(store, saved, 2)
    assert [each.step for each in store.complete()] == [1]


def test_files_and_parts_of_an_earlier_attempt_are_not_sent_again(
    bucket: Bucket, save: Save, tmp_path: Path, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file whole, one half, one not begun: the second try sends what is missing, under names of its own or not."""
    saved = save(a=PART + 1, b=2 * PART + 1, c=PART + 2)
    transfer.send(saved / "a", bucket, "step-00000001/dead/a")
    upload = multipart.begin(bucket, "step-00000001/dead/b", checksum=True)
    upload.send(1, (saved / "b").read_bytes()[:PART], checksum=True)
    transfer.send(save(seed=9, c=PART + 2) / "c", bucket, "step-00000001/dead/c")  # of the right size only
    sent = record(monkeypatch, transfer, "send", TARGET)
    parts: list[int] = []
    real = multipart.MultipartUpload.send

    def counted(self: multipart.MultipartUpload, number: int, data: bytes, **options: Any) -> multipart.Part:
        parts.append(len(data))
        return real(self, number, data, **options)

    monkeypatch.setattr(multipart.MultipartUpload, "send", counted)
    store = CheckpointStore(bucket)
    made = _upload(store, saved, 1, "alive")
    assert {file.name: file.object for file in made.files} == {
        "a": "step-00000001/dead/a",
        "b": "step-00000001/dead/b",
        "c": "step-00000001/alive/c",
    }
    assert sorted(sent) == ["step-00000001/alive/c", "step-00000001/dead/b"]
    assert sum(parts) == PART + 1 + PART + 2
    assert content(store.fetch(made, tmp_path / "into")) == content(saved)
    store.retain(last=1)
    assert not bucket.exists("step-00000001/dead/c")
    assert store.problems(made) == []


def test_a_suspended_writer_cannot_change_what_its_successor_committed(
    bucket: Bucket, save: Save, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, others = save(a=2 * PART + 1), save(seed=1, a=2 * PART + 1)
    store, woken = CheckpointStore(bucket), CheckpointStore(bucket)
    real = multipart.MultipartUpload.send
    made: list[Checkpoint] = []
    asleep: list[bool] = []

    def sleepy(self: multipart.MultipartUpload, number: int, data: bytes, **options: Any) -> multipart.Part:
        if number == 2 and not asleep:
            asleep.append(True)
            made.append(_upload(store, saved, 1, "successor"))
        return real(self, number, data, **options)

    monkeypatch.setattr(multipart.MultipartUpload, "send", sleepy)
    with pytest.raises(UnreachableError, match="another process ended this upload"):
        _upload(woken, others, 1, "sleeper")
    assert made[0].files[0].object == "step-00000001/sleeper/a"  # it went on with the sleeper's upload
    assert store.problems(made[0]) == []
    with pytest.raises(ConflictError):
        _upload(woken, others, 1, "sleeper-again")
    assert store.problems(made[0]) == []


def test_no_part_of_a_checkpoint_is_left_when_its_step_is_over(bucket: Bucket, save: Save, small_parts: int) -> None:
    store = CheckpointStore(bucket)
    _upload(store, save(a=PART + 1), 20)
    for step in (10, 20, 30):
        multipart.begin(bucket, f"step-{step:08d}/dead/a", checksum=True)
    multipart.begin(bucket, "elsewhere/a", checksum=True)
    assert store.retain(last=1) == []
    assert {upload.path for upload in multipart.unfinished(bucket)} == {"step-00000030/dead/a", "elsewhere/a"}


def test_retention_works_without_permission_to_list_uploads(
    bucket: Bucket, save: Save, small_parts: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(bucket)
    for step in (10, 20):
        _upload(store, save(seed=step, a=PART + 1), step)

    def refuse(*_: Any) -> Any:
        raise AuthError("access refused", "ask")

    monkeypatch.setattr(multipart, "unfinished", refuse)
    assert store.retain(last=1) == [10]
    assert "unfinished uploads are not removed" in caplog.text


def test_the_progress_of_a_fetch_ends_at_the_whole(folder: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(folder)
    moved: list[int] = []
    store.fetch(_upload(store, save(**FOUR), 1), tmp_path / "into", progress=moved.append)
    assert sum(moved) == sum(FOUR.values())


def test_a_checkpoint_that_does_not_fit_leaves_nothing(
    full_disk: Limit, folder: Bucket, save: Save, tmp_path: Path
) -> None:
    store = CheckpointStore(folder)
    made = _upload(store, save(**FOUR), 1)
    with full_disk(2000), pytest.raises(DiskFullError):
        store.fetch(made, tmp_path / "into")
    assert os.listdir(tmp_path / "into") == []


def test_a_damaged_checkpoint_leaves_nothing_here(folder: Bucket, save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(folder)
    made = _upload(store, save(**FOUR), 1)
    folder.put(made.files[2].object, bytes(FOUR["c"]))
    assert store.fetch_newest(tmp_path / "into") is None
    assert os.listdir(tmp_path / "into") == []


def test_a_damaged_manifest_gives_way_to_a_whole_one(folder: Bucket, save: Save) -> None:
    folder.put("step-00000001.json", b"{")
    store = CheckpointStore(folder)
    assert store.complete() == []
    made = _upload(store, save(a=10), 1)
    assert store.complete() == [made]


def test_a_server_that_writes_over_manifests_makes_no_checkpoint_of_two(
    folder: Bucket, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers ignore If-None-Match: the manifest that is stored afterwards decides."""
    store, rival = CheckpointStore(folder), CheckpointStore(Bucket.open(folder.url))
    put = folder.put

    def overwritten(path: str, data: bytes, *, create_only: bool = False) -> None:
        put(path, data)
        if create_only:
            folder.delete(path)
            _upload(rival, save(seed=1, a=10), 1, "rival")

    monkeypatch.setattr(folder, "put", overwritten)
    with pytest.raises(ConflictError, match="exists with other content"):
        _upload(store, save(a=10), 1, "mine")
    assert [each.upload_id for each in rival.complete()] == ["rival"]


WRITER = """
    import sys, time
    from pathlib import Path
    from bafogpt.core.errors import ConflictError
    from bafogpt.core.settings import Settings
    from bafogpt.storage.bucket import Bucket
    from bafogpt.storage.checkpoints.store import CheckpointStore

    url, endpoint, folder, name = sys.argv[1:]
    store = CheckpointStore(Bucket.open(url, Settings(bucket=url, s3_endpoint=endpoint)))
    store.complete()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        store.upload(Path(folder), step=1, samples=1, upload_id=name, metadata={})
        print("committed")
    except ConflictError as error:
        print("conflict")
"""


def test_of_two_processes_that_write_one_step_one_wins_and_its_checkpoint_is_whole(
    bucket: Bucket, s3: Any, save: Save, tmp_path: Path
) -> None:
    folders = {name: save(seed=i, a=300_000, b=20) for i, name in enumerate(("one", "two"))}
    writers = {}
    for name, folder in folders.items():
        command = [sys.executable, "-c", textwrap.dedent(WRITER)]
        command += [bucket.url, s3.environment["AWS_ENDPOINT_URL"], str(folder), name]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        writers[name] = subprocess.Popen(command, env=os.environ | s3.environment, **pipes)
    for writer in writers.values():
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers.values():
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = {name: writer.communicate()[0].strip() for name, writer in writers.items()}
    assert sorted(said.values()) == ["committed", "conflict"]
    (winner,) = (name for name, word in said.items() if word == "committed")
    store = CheckpointStore(bucket)
    (made,) = store.complete()
    assert made.upload_id == winner
    assert content(store.fetch(made, tmp_path / "into")) == content(folders[winner])
