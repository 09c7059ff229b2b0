"""The manifest of a model folder, and copying such folders between local disk and buckets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.core.errors import BafoError, ConfigError, ConflictError, CorruptError, DiskFullError, StorageError
from bafogpt.core.settings import Settings
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders import sync
from bafogpt.folders.manifest import ModelFile, ModelManifest
from bafogpt.folders.sync import SyncPlan, SyncReport, execute, prepare
from bafogpt.folders.uri import FolderLocation, locate
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer.download import PARTIAL
from tests.storage.tools import content, record

FILES = {"model.safetensors": b"w" * 3_000_000, "config.json": b"{}", "tokenizer/tokenizer.json": b"[]", "empty": b""}
DIGEST = "blake3:" + "0" * 64


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", FILES)


Planner = Callable[..., SyncPlan]
Copier = Callable[..., SyncReport]


@pytest.fixture
def plan(anywhere: Bucket) -> Planner:
    """``plan(source, target)`` of paths, URLs and names in the bucket."""
    settings = anywhere.address("")[0].settings

    def place(what: str | Path) -> FolderLocation:
        text = str(what)
        return locate(text if "/" in text else f"{anywhere.url}/{text}", settings)

    return lambda source, target: prepare(place(source), place(target))


@pytest.fixture
def copy(plan: Planner) -> Copier:
    return lambda source, target: execute(plan(source, target))


def manifest_of(bucket: Bucket, name: str) -> ModelManifest:
    found = folder_manifest.load(bucket.child(name))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../a"], "unsafe file name '../a'"),
        (["/etc/passwd"], "unsafe"),
        (["a//b"], "unsafe"),
        (["a\\b"], "unsafe"),
        (["a", "a"], "'a' is listed twice"),
        (["Model.bin", "model.bin"], "the same file on some disks"),
        (["caf\u00e9", "cafe\u0301"], "the same file on some disks"),
        (["a", "a/b"], "a file and, in 'a/b', a folder"),
        (["A/b", "a"], "a folder"),
        (["manifest.json"], "the manifest's own name"),
        ([f"a{PARTIAL}"], "unfinished download"),
    ],
)
def test_names_that_no_folder_can_have_are_refused(names: list[str], message: str):
    with pytest.raises(CorruptError) as caught:
        folder_manifest.check_names(names, "here")
    assert message in caught.value.message


@given(st.lists(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}", fullmatch=True), unique=True))
def test_names_are_accepted_exactly_when_a_disk_can_hold_them_all(names: list[str]):
    folders = {"/".join(name.split("/")[:end]) for name in names for end in range(1, len(name.split("/")))}
    try:
        folder_manifest.check_names(names, "here")
    except CorruptError:
        assert folders & set(names)
    else:
        assert not folders & set(names)


def test_a_folder_there_and_back_is_the_same(copy: Copier, anywhere: Bucket, model: Path, tmp_path: Path):
    pushed = copy(model, "m")
    assert (pushed.files, pushed.sent_files, pushed.bytes) == (4, 4, 3_000_004)
    assert anywhere.get("m/config.json") == b"{}", "files keep their names, for other tools"
    copy("m", tmp_path / "back")
    assert content(tmp_path / "back") == FILES
    copy(tmp_path / "back", "again")
    one, other = manifest_of(anywhere, "m"), manifest_of(anywhere, "again")
    assert [(each.name, each.digest) for each in one.files] == [(each.name, each.digest) for each in other.files]


def test_a_second_push_sends_only_changed_files(copy: Copier, plan: Planner, anywhere: Bucket, model: Path):
    copy(model, "m")
    assert copy(model, "m").sent_files == 0
    (model / "config.json").write_bytes(b"[]")  # as long as before
    assert [entry.name for entry in plan(model, "m").to_send] == ["config.json"]
    assert copy(model, "m").sent_files == 1
    assert anywhere.get("m/config.json") == b"[]"
    anywhere.put("m/config.json", b"??")  # by another program
    assert copy(model, "m").sent_files == 1
    assert anywhere.get("m/config.json") == b"[]"


def test_between_two_folders_of_buckets(copy: Copier, anywhere: Bucket, model: Path):
    copy(model, "a")
    report = copy("a", "b")
    assert report.sent_bytes == 3_000_004
    assert anywhere.get("b/model.safetensors") == FILES["model.safetensors"]
    assert copy("a", "b").sent_files == 0


def before_large_file(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call ``act`` once, before the first large file is sent."""
    original = sync._move

    def move(listing: Any, entry: Any, *rest: Any) -> ModelFile:
        if entry.bytes > sync.SMALL_BYTES:
            patch.setattr(sync, "_move", original)
            act()
        return original(listing, entry, *rest)

    patch.setattr(sync, "_move", move)


class Killed(Exception):  # noqa: N818 - stands for kill -9
    pass


def test_an_interrupted_push_leaves_an_unfinished_folder_and_resumes(
    copy: Copier, plan: Planner, anywhere: Bucket, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy(model, "m")
    (model / "model.safetensors").write_bytes(b"x" * 3_000_000)
    (model / "config.json").write_bytes(b"[1]")

    def die() -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        before_large_file(patch, die)
        copy(model, "m")
    left = manifest_of(anywhere, "m")
    assert left.state == "unfinished"
    assert "model.safetensors" not in {each.name for each in left.files}, "an old file under a new manifest"
    with pytest.raises(StorageError, match="unfinished"):
        copy("m", tmp_path / "back")
    assert [entry.name for entry in plan(model, "m").to_send] == ["model.safetensors"]
    copy(model, "m")
    copy("m", tmp_path / "back")
    assert content(tmp_path / "back") == content(model)


def test_of_two_pushes_at_a_time_the_one_that_began_first_fails(
    plan: Planner, anywhere: Bucket, model: Path, monkeypatch: pytest.MonkeyPatch
):
    first = plan(model, "m")
    before_large_file(monkeypatch, lambda: execute(replace(plan(model, "m"), unchanged={})))
    with pytest.raises(ConflictError, match="began after this one"):
        execute(first)
    assert manifest_of(anywhere, "m").state == "complete"


def test_a_corrupt_object_is_never_copied(copy: Copier, anywhere: Bucket, model: Path, tmp_path: Path):
    copy(model, "m")
    anywhere.put("m/config.json", b"{ }")
    with pytest.raises(CorruptError, match=r"3 bytes long, its manifest says 2 bytes"):
        copy("m", "other")
    anywhere.delete("m/config.json")
    with pytest.raises(CorruptError, match="missing"):
        copy("m", "other")
    assert anywhere.list("other") == []
    anywhere.put("m/config.json", b"[]")
    for target in (tmp_path / "back", "other"):
        with pytest.raises(CorruptError, match=r"config\.json"):
            copy("m", target)
    assert not (tmp_path / "back" / "config.json").exists()
    assert not anywhere.exists("other/config.json")


def test_a_manifest_with_an_unsafe_name_touches_nothing(copy: Copier, anywhere: Bucket, tmp_path: Path):
    manifest = ModelManifest(files=(ModelFile(name="../evil", bytes=1, digest=DIGEST),), created="now")
    anywhere.put("m/manifest.json", manifest.to_json())
    with pytest.raises(CorruptError, match="unsafe file name"):
        copy("m", tmp_path / "back")
    assert not (tmp_path / "evil").exists()


def test_symbolic_links_are_refused_on_either_side(copy: Copier, anywhere: Bucket, model: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (model / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BafoError, match="symbolic link"):
        copy(model, "m")
    (model / "link").unlink()
    copy(model, "m")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "tokenizer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symbolic link"):
        copy("m", tmp_path / "back")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_named_pipe_in_the_tree_is_refused(copy: Copier, model: Path):
    os.mkfifo(model / "pipe")
    with pytest.raises(BafoError, match="not a regular file"):
        copy(model, "m")


def test_a_full_disk_is_found_before_anything_is_fetched(
    copy: Copier, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy(model, "m")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"needs 3\.0 MB"):
        copy("m", tmp_path / "back")
    assert content(tmp_path / "back") == {}


def test_a_file_that_changes_while_it_is_pushed_is_an_error(
    copy: Copier, anywhere: Bucket, model: Path, monkeypatch: pytest.MonkeyPatch
):
    original = transfer.send

    def change(source: Any, bucket: Bucket, path: str, **options: Any) -> Any:
        sent = original(source, bucket, path, **options)
        os.utime(model / path, (1, 1))
        return sent

    monkeypatch.setattr(transfer, "send", change)
    with pytest.raises(StorageError, match="was changed while"):
        copy(model, "m")
    assert manifest_of(anywhere, "m").state == "unfinished"


def test_a_folder_without_a_manifest_is_copied_and_its_sizes_are_all_that_is_known(
    copy: Copier, anywhere: Bucket, tmp_path: Path
):
    anywhere.put("plain/a.txt", b"abc")
    report = copy("plain", tmp_path / "back")
    assert report.verified_by == "sizes only of the source"
    assert content(tmp_path / "back") == {"a.txt": b"abc"}


def test_a_dataset_is_copied_with_its_own_manifest_last(
    copy: Copier, write: Callable[..., Any], anywhere: Bucket, monkeypatch: pytest.MonkeyPatch
):
    from bafogpt.storage.tokens import manifest as manifests

    written, _ = write(anywhere.child("data"), [50, 60, 70])
    order = record(monkeypatch, sync, "_move", lambda listing, entry, *_: entry.name)
    copy("data", "copied")
    assert manifests.load(anywhere.child("copied")).digest == written.digest
    assert order[-1] == "manifest.json"
    assert copy("data", "copied").sent_files == 0


def test_nothing_at_the_source_is_an_error(copy: Copier, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "not-there", tmp_path / "empty", "nothing"):
        with pytest.raises(BafoError, match=r"does not exist|no file|nothing below"):
            copy(source, "m")
    (tmp_path / "file").touch()
    with pytest.raises(BafoError, match="is a file"):
        copy(tmp_path / "file", "m")


def test_a_folder_cannot_be_copied_to_itself(copy: Copier):
    with pytest.raises(BafoError, match="source and target"):
        copy("m", "m")


@pytest.mark.parametrize(
    ("text", "base", "url"),
    [
        ("models/m", "bucket", "s3://zulu/below/models/m"),
        ("", "bucket", "s3://zulu/below"),
        ("models/m", "local", "file://{here}/models/m"),
        ("./models", "bucket", "file://{here}/models"),
        ("/data/m/", "bucket", "file:///data/m"),
        ("file:///data/a%20b", "bucket", "file:///data/a%20b"),
        ("s3://other/x/", "local", "s3://other/x"),
        ("hf://a/b@v1", "local", "hf://a/b@v1"),
    ],
)
def test_paths_and_urls_are_located(text: str, base: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    place = locate(text, Settings(bucket="s3://zulu/below"), base)
    assert place.url == url.format(here=tmp_path)
    assert (place.local is not None) == url.startswith("file:")


def test_other_schemes_and_empty_paths_are_refused():
    for wrong in ("gs://bucket/x", "s3://X", "hf://one"):
        with pytest.raises(ConfigError):
            locate(wrong, Settings())
    with pytest.raises(ConfigError):
        locate("", Settings(), "local")
