"""Models to the Hub and from it, by its real client and a stand-in server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bafogpt.core.errors import CorruptError, StorageError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.folders import gc
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.hub import card, lfs
from bafogpt.folders.hub import push as hub_push
from bafogpt.folders.hub.repository import HubLocation, HubRepo
from bafogpt.folders.sync import SyncPlan, execute, prepare
from bafogpt.folders.uri import locate
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore

from .conftest import BIG, REPO, Copy, content, write_model
from .server import Hub
from .state import Fault, File

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client, not ours


def files_of(hub: Hub, name: str = "zulu/model", branch: str = "main") -> dict[str, File]:
    repo = hub.repos[name]
    return repo.commits[repo.branches[branch]]


def damage(hub: Hub, name: str) -> None:
    """Change the first byte of a file at the Hub, but not its hash."""
    file = files_of(hub)[name]
    if not file.sha256:
        files_of(hub)[name] = WrongContent(file)
        return
    path = hub.object(file.sha256)
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def test_a_push_is_one_private_commit_with_card_and_manifest_and_the_same_again_is_none(
    hub: Hub, copy: Copy, model: Path, settings: Settings
):
    report = copy(model, REPO)

    repo = hub.repos["zulu/model"]
    assert repo.private
    assert len(repo.commits) == 2, "the empty one, and that of the push"
    assert repo.branches["main"] == report.commit
    assert set(files_of(hub)) == {".gitattributes", "README.md", "manifest.json", *content(model)}
    assert (report.files, report.sent_bytes) == (4, sum(map(len, content(model).values())))
    assert hub.up == 2 * BIG
    assert not list((Path(settings.home) / "hub").iterdir()), "a journal is left"
    again = copy(model, REPO)
    assert (again.commit, again.sent_files, hub.up) == (report.commit, 0, 2 * BIG)
    assert len(repo.commits) == 2


def test_a_pushed_folder_is_pulled_unchanged_and_verified(hub: Hub, copy: Copy, model: Path, tmp_path: Path):
    copy(model, REPO)
    report = copy(REPO, tmp_path / "pulled")

    pulled = content(tmp_path / "pulled")
    assert pulled == content(model)
    assert report.verified_by == "manifest (blake3) of the source"
    again = copy(REPO, tmp_path / "pulled")
    assert again.sent_files == 0


def test_a_push_of_a_changed_model_sends_changed_files_and_deletes_missing_ones(hub: Hub, copy: Copy, model: Path):
    copy(model, REPO)
    received = hub.up
    (model / "model-2.safetensors").rename(model / "model-3.safetensors")
    (model / "config.json").write_text("{}")
    copy(model, REPO)

    names = set(files_of(hub))
    assert "model-3.safetensors" in names
    assert "model-2.safetensors" not in names
    assert files_of(hub)["config.json"].content == b"{}"
    assert hub.up == received, "the Hub knows large content by its hash"


def test_a_repository_is_verified_without_a_copy(hub: Hub, copy: Copy, model: Path, settings: Settings):
    copy(model, REPO)
    assert gc.verify(gc.scan(locate(REPO, settings).bucket())) == []
    damage(hub, "model-1.safetensors")
    problems = gc.verify(gc.scan(locate(REPO, settings).bucket()))
    assert problems == [f"{REPO}/model-1.safetensors does not match its hash"]


def test_a_repository_without_a_manifest_is_verified_by_the_hubs_hashes(
    hub: Hub, copy: Copy, model: Path, tmp_path: Path
):
    copy(model, REPO)
    del files_of(hub)["manifest.json"]
    report = copy(REPO, tmp_path / "pulled")

    assert report.verified_by == "the Hub's sha256 and git hashes of the source"
    pulled = content(tmp_path / "pulled")
    assert pulled.pop("README.md")
    assert pulled == content(model)
    manifest = folder_manifest.from_json((tmp_path / "pulled" / "manifest.json").read_bytes(), "")
    assert all(each.digest.startswith("blake3:") for each in manifest.files)


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
def test_a_wrong_byte_from_the_hub_is_an_error_and_no_file(
    hub: Hub, copy: Copy, model: Path, tmp_path: Path, name: str
):
    copy(model, REPO)
    del files_of(hub)["manifest.json"]
    damage(hub, name)
    with pytest.raises(CorruptError, match=name):
        copy(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / name).exists()
    with pytest.raises(StorageError, match="unfinished"):
        copy(tmp_path / "pulled", REPO)


class WrongContent(File):
    """A small file whose content is not that of its name."""

    def __init__(self, right: File) -> None:
        super().__init__(b"x" * right.size, size=right.size)
        object.__setattr__(self, "right", right)

    @property
    def oid(self) -> str:
        return self.right.oid  # type: ignore[attr-defined, no-any-return]


def test_from_the_hub_to_a_bucket_and_back_without_a_file_here(
    hub: Hub, copy: Copy, model: Path, bucket: Bucket, tmp_path: Path
):
    copy(model, REPO)
    del files_of(hub)["manifest.json"]
    copy(REPO, f"{bucket.url}/from-hub")
    manifest = folder_manifest.load(bucket.child("from-hub"))
    assert manifest is not None
    assert manifest.state == "complete"
    assert all(each.sha256 for each in manifest.files if each.bytes > BIG - 1)

    received = hub.up
    copy(f"{bucket.url}/from-hub", "hf://zulu/again")
    assert hub.up == received, "the Hub has the content"
    copy("hf://zulu/again", tmp_path / "back")
    back = content(tmp_path / "back")
    back.pop("README.md")
    assert back == content(model)
    assert not (tmp_path / "home" / "models").exists()


def test_a_wrong_byte_on_the_way_between_two_remotes_leaves_no_manifest(
    hub: Hub, copy: Copy, model: Path, bucket: Bucket
):
    copy(model, REPO)
    del files_of(hub)["manifest.json"]
    damage(hub, "model-2.safetensors")
    with pytest.raises(CorruptError, match=r"model-2\.safetensors"):
        copy(REPO, f"{bucket.url}/m")
    left = folder_manifest.load(bucket.child("m"))
    assert left is not None
    assert left.state == "unfinished"
    assert not bucket.exists("m/model-2.safetensors")


def test_from_a_bucket_to_the_hub_in_parts(hub: Hub, copy: Copy, model: Path, bucket: Bucket):
    copy(model, f"{bucket.url}/m")
    copy(f"{bucket.url}/m", REPO)
    assert hub.up == 2 * BIG
    manifest = json.loads(files_of(hub)["manifest.json"].content)
    assert {each["name"] for each in manifest["files"]} == set(content(model))


def test_a_card_that_a_person_wrote_is_never_written_over(hub: Hub, copy: Copy, model: Path):
    copy(model, REPO)
    assert card.is_ours(files_of(hub)["README.md"].content)
    (model / "config.json").write_text("1")
    files_of(hub)["README.md"] = File(b"# Mine", size=6)
    copy(model, REPO)
    assert files_of(hub)["README.md"].content == b"# Mine"
    (model / "README.md").write_text("# From the folder")
    copy(model, REPO)
    assert files_of(hub)["README.md"].content == b"# From the folder"


def test_the_card_has_the_known_facts_and_marks_the_others():
    facts = {"run": "zulu-1", "step": 40, "samples": 4000, "sequence_length": 128, "model": "Gemma-2-2b"}
    text = card.write("hf://zulu/model", facts, 3, 5_000_000).decode()

    header, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert header.splitlines()[:2] == ["language:", "- zu"]
    assert "license: gemma" in header
    assert "base_model: google/gemma-2-2b" in header
    assert "https://ai.google.dev/gemma/terms" in body and "prohibited_use_policy" in body
    assert "| Optimizer steps | 40 |" in body
    assert "| Training tokens | 512,000 |" in body
    text = card.write("hf://zulu/model", {**facts, "base_model": "zulu/own"}, 3, 5_000_000).decode()
    assert "license: other" in text and "**Licence: to be filled in.**" in text and "gemma/terms" not in text


def test_a_push_to_a_branch_and_a_pull_of_an_older_commit(hub: Hub, copy: Copy, model: Path, tmp_path: Path):
    first = copy(model, REPO)
    (model / "config.json").write_text("2")
    copy(model, f"{REPO}@next")

    assert files_of(hub, branch="next")["config.json"].content == b"2"
    assert files_of(hub)["config.json"].content != b"2"
    copy(f"{REPO}@{first.commit}", tmp_path / "old")
    assert (tmp_path / "old" / "config.json").read_bytes() == b'{"seed": 0}'


def test_a_public_repository_is_pushed_to_only_with_public(hub: Hub, copy: Copy, model: Path):
    copy(model, "hf://zulu/open", public=True)
    assert not hub.repos["zulu/open"].private
    (model / "config.json").write_text("3")
    with pytest.raises(UsageError, match="public"):
        copy(model, "hf://zulu/open")
    copy(model, "hf://zulu/open", public=True)
    assert files_of(hub, "zulu/open")["config.json"].content == b"3"


def interrupted(plan: SyncPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute a plan until a file has two parts at the Hub."""
    write = lfs.Uploads._write

    def stop_after_two(self: lfs.Uploads, sha256: str, journal: lfs._Journal) -> None:
        write(self, sha256, journal)
        if len(journal.etags) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lfs.Uploads, "_write", stop_after_two)
        execute(plan)


def test_an_interrupted_upload_resumes_after_its_last_part(
    hub: Hub, model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    plan = prepare(locate(str(model), settings), locate(REPO, settings))
    interrupted(plan, monkeypatch)
    (journal,) = (Path(settings.home) / "hub").iterdir()
    assert journal.stat().st_mode & 0o777 == 0o600
    moved: list[int] = []
    execute(plan, progress=moved.append)

    assert hub.up == 2 * BIG, "not a byte twice"
    assert sum(moved) == plan.bytes_to_send
    assert list((Path(settings.home) / "hub").iterdir()) == []


def test_an_upload_whose_addresses_have_expired_begins_anew(
    hub: Hub, model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    plan = prepare(locate(str(model), settings), locate(REPO, settings))
    interrupted(plan, monkeypatch)
    hub.uploads.clear()
    execute(plan)

    assert files_of(hub)["model-1.safetensors"].size == BIG
    assert hub.up == 2 * BIG + 2 * hub.part_bytes


def test_a_small_hiccup_of_the_hub_is_tried_again(hub: Hub, copy: Copy, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults = [Fault(r"PUT /store/", 503), Fault(r"POST /complete/", 500), Fault(r"objects/batch", 502)]
    copy(model, REPO)
    assert files_of(hub)["model-2.safetensors"].size == BIG


def test_a_file_that_the_repository_ignores_is_an_error(
    hub: Hub, copy: Copy, model: Path, monkeypatch: pytest.MonkeyPatch
):
    def without(listing: object, repo: HubRepo) -> None:
        repo._entries.pop("config.json")
        original(listing, repo)  # type: ignore[arg-type]

    original = hub_push._verify
    monkeypatch.setattr(hub_push, "_verify", without)
    with pytest.raises(StorageError, match=r"does not hold config\.json"):
        copy(model, REPO)


def test_with_xet_the_hubs_own_client_sends_the_large_files(
    hub: Hub, copy: Copy, model: Path, monkeypatch: pytest.MonkeyPatch
):
    sent = []
    original = HfApi.preupload_lfs_files

    def record(self: HfApi, repo_id: str, additions: list[object], **options: object) -> None:
        sent.extend(additions)
        original(self, repo_id, additions, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hub_push, "_has_xet", lambda: True)
    monkeypatch.setattr(HfApi, "preupload_lfs_files", record)
    copy(model, REPO)
    assert {each.path_in_repo for each in sent} >= {"model-1.safetensors", "model-2.safetensors"}  # type: ignore[attr-defined]
    assert hub.up == 2 * BIG
    assert files_of(hub)["model-1.safetensors"].size == BIG


def test_the_newest_checkpoint_of_a_run_goes_to_the_hub_with_its_facts(
    hub: Hub, copy: Copy, bucket: Bucket, tmp_path: Path
):
    run = bucket.child("runs/zulu-1")
    train = {
        "model": {"name": "Gemma-2-2b"},
        "data": {"path": "data/zulu", "sequence_length": 64},
        "precision": "bf16-mixed",
    }
    run.put("run.json", json.dumps({"name": "zulu-1", "job": {"train": train}}).encode())
    for step in (20, 40):
        write_model(tmp_path / str(step), 100, seed=step)
        for path in (tmp_path / str(step) / "tokenizer").iterdir():
            path.unlink()
        (tmp_path / str(step) / "tokenizer").rmdir()
        store = CheckpointStore(run.child("checkpoints"))
        store.upload(tmp_path / str(step), step=step, samples=10 * step, upload_id=f"u{step}", metadata={})
    copy(f"{run.url}/checkpoints", REPO)
    assert files_of(hub)["config.json"].content == b'{"seed": 40}'
    text = files_of(hub)["README.md"].content.decode()
    assert "google/gemma-2-2b" in text
    assert "| Training tokens | 25,600 |" in text
    copy(f"{run.url}/checkpoints/step-00000020", tmp_path / "twenty")
    assert content(tmp_path / "twenty") == content(tmp_path / "20")


def test_a_location_is_a_repository_and_a_revision():
    assert HubLocation.parse("hf://zulu/model@v1.0") == HubLocation("zulu/model", "v1.0")
    assert HubLocation.parse("hf://zulu/model/") == HubLocation("zulu/model")
    for wrong in ("hf://model", "hf://zulu/model/folder", "hf://zulu/model@", "hf://zulu/mo del"):
        with pytest.raises(UsageError, match="not a repository"):
            HubLocation.parse(wrong)
