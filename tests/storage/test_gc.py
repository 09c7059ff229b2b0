"""Verifying, counting and clearing what a bucket holds, by its manifests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bafogpt.core.errors import BafoError, NotFoundError
from bafogpt.folders import gc
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.sync import execute, prepare
from bafogpt.folders.uri import locate
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.tokens.manifest import Packing, TokenizerInfo
from bafogpt.storage.tokens.writer import TokenWriter
from bafogpt.storage.transfer import multipart

DAY = timedelta(hours=24)
TOMORROW = datetime.now(UTC) + timedelta(hours=25)


@pytest.fixture
def full(anywhere: Bucket, write: Callable[..., Any], tmp_path: Path) -> Bucket:
    """A bucket with a model, a dataset, a run with two checkpoints, and a folder of other files."""
    settings = anywhere.address("")[0].settings
    model = tmp_path / "model"
    (model / "tokenizer").mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"w" * 2_000_000)
    (model / "tokenizer" / "tokenizer.json").write_bytes(b"[]")
    execute(prepare(locate(str(model), settings), locate(f"{anywhere.url}/models/m", settings)))
    write(anywhere.child("data/d"), [300, 200, 100])
    run = anywhere.child("runs/r")
    run.put("run.json", b"{}")
    run.put("events/0001-000.jsonl", b"{}")
    for step in (10, 20):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        (folder / "state.bin").write_bytes(b"s" * step)
        CheckpointStore(run.child("checkpoints")).upload(
            folder, step=step, samples=step, upload_id=f"u{step}", metadata={}
        )
    anywhere.put("plain/notes.txt", b"mine")
    return anywhere


def garbage(bucket: Bucket, older_than: timedelta = DAY, now: datetime = TOMORROW) -> set[str]:
    return {each.path for each in gc.garbage(gc.scan(bucket), older_than, now)}


def test_an_undamaged_bucket_verifies_and_every_byte_is_read(full: Bucket):
    contents = gc.scan(full)
    read: list[int] = []

    assert [(each.path, each.kind) for each in contents.folders] == [
        ("data/d", "dataset"),
        ("models/m", "model"),
        ("runs/r/checkpoints", "checkpoint"),
    ]
    assert gc.verify(contents, read.append) == []
    assert sum(read) == gc.bytes_to_verify(contents) > 2_000_000


def test_damage_is_named_down_to_the_block(full: Bucket):
    shard = next(info.path for info in full.list("data/d/shards") if info.path.endswith(".bin") and info.bytes == 256)
    data = full.get(shard)
    full.put(shard, data[:70] + bytes([data[70] ^ 1]) + data[71:])
    full.put("models/m/weights.bin", b"x" * 2_000_000)
    full.put("runs/r/checkpoints/step-00000010/u10/state.bin", b"short")
    full.delete("models/m/tokenizer/tokenizer.json")
    full.put("runs/r/checkpoints/step-00000020.json", b"{")

    problems = gc.verify(gc.scan(full))
    for text in (
        f"{full.url}/{shard} bytes 64-127 does not match its hash",
        f"{full.url}/models/m/weights.bin does not match its hash",
        f"{full.url}/runs/r/checkpoints/step-00000010/u10/state.bin has 5 bytes, not 10",
        f"{full.url}/models/m/tokenizer/tokenizer.json is missing",
        f"{full.url}/runs/r/checkpoints/step-00000020.json: not a JSON object",
    ):
        assert text in problems, problems
    assert len(problems) == 5


def test_the_answers_of_a_packed_dataset_are_verified_and_no_garbage(anywhere: Bucket, tmp_path: Path):
    with TokenWriter(anywhere, dtype="uint16", workdir=tmp_path, packing=Packing(16, "plain", "")) as writer:
        writer.add("train", "instructions", "a", np.full(10, 7), [(2, 4)])
        written = writer.finish(tokenizer=TokenizerInfo("bytes", "blake3:00", 1, None), vocab_size=320, sources=[])
    assert gc.verify(gc.scan(anywhere)) == []
    assert garbage(anywhere) == set()
    (shard,) = written.splits["train"].shards
    anywhere.put(shard.answers_object, bytes(16))
    assert gc.verify(gc.scan(anywhere)) == [f"{anywhere.url}/{shard.answers_object} does not match its hash"]


def test_one_folder_is_verified_alone(full: Bucket):
    full.put("data/d/manifest.json", b'{"format": "bafogpt.tokens/1"}')
    assert gc.verify(gc.scan(full.child("models/m"))) == []
    assert gc.verify(gc.scan(full.child("runs"))) == []
    assert gc.verify(gc.scan(full.child("data"))) != []


def test_verifying_needs_a_manifest(full: Bucket):
    with pytest.raises(NotFoundError, match="has a manifest"):
        gc.verify(gc.scan(full.child("plain")))


def test_nothing_that_is_needed_is_garbage(full: Bucket):
    full.put("models/other/manifest.json", b'{"version": 3}')
    full.put("models/other/file", b"of another program")
    assert garbage(full) == set()


def test_old_objects_that_no_manifest_names_are_garbage(full: Bucket):
    orphans = {
        "models/m/weights-of-last-week.bin",
        "data/d/shards/train-00000-deadbeef.bin",
        "runs/r/checkpoints/step-00000010/u9/state.bin",
        "runs/r/checkpoints/step-00000030/u1/state.bin",
    }
    for path in orphans:
        full.put(path, b"x")

    assert garbage(full) == orphans
    assert garbage(full, now=datetime.now(UTC)) == set()
    assert garbage(full, older_than=timedelta(hours=48)) == set()
    gc.remove(full, gc.garbage(gc.scan(full), DAY, TOMORROW))
    assert garbage(full) == set()
    assert gc.verify(gc.scan(full)) == []
    assert full.get("plain/notes.txt") == b"mine"


@pytest.mark.parametrize("path", ["models/m/manifest.json", "runs/r/checkpoints/step-00000010.json"])
def test_nothing_is_garbage_where_a_manifest_cannot_be_read(full: Bucket, path: str):
    full.put("models/m/orphan", b"x")
    full.put("runs/r/checkpoints/step-00000010/u9/state.bin", b"x")
    full.put(path, full.get(path)[:-40])
    if path.startswith("models/"):  # a file that is not JSON is no manifest, so that folder is not touched either
        assert garbage(full) == {"runs/r/checkpoints/step-00000010/u9/state.bin"}
    else:
        assert garbage(full) == {"models/m/orphan"}


def test_a_manifest_of_a_later_version_protects_its_folder(full: Bucket):
    full.put("models/m/orphan", b"x")
    full.put("models/m/manifest.json", full.get("models/m/manifest.json").replace(b"files/1", b"files/2"))
    assert garbage(full) == set()
    assert "format 'bafogpt.files/2'" in gc.verify(gc.scan(full.child("models")))[0]


def test_an_upload_that_was_never_completed_is_garbage_once_it_is_old(bucket: Bucket):
    upload = multipart.begin(bucket, "models/m/weights.bin", checksum=False)
    (found,) = gc.garbage(gc.scan(bucket), DAY, TOMORROW)
    assert (found.path, found.reason) == ("models/m/weights.bin", "an unfinished upload")
    assert gc.garbage(gc.scan(bucket), DAY, datetime.now(UTC)) == []
    gc.remove(bucket, [found])
    assert multipart.unfinished(bucket) == []
    upload.abort()


def test_an_unfinished_folder_is_a_problem_and_its_files_are_kept(full: Bucket):
    manifest = folder_manifest.load(full.child("models/m"))
    assert manifest is not None
    full.put("models/m/manifest.json", replace(manifest, state="unfinished").to_json())
    assert "unfinished" in gc.verify(gc.scan(full.child("models")))[0]
    assert garbage(full) == set()


def test_how_much_each_folder_holds(full: Bucket):
    rows = {folder: (count, size) for folder, count, size in gc.usage(full)}
    assert rows["plain"] == (1, 4)
    assert rows["models"][0] == 3
    assert {folder for folder, _, _ in gc.usage(full, depth=2)} == {"data/d", "models/m", "plain", "runs/r"}
    with pytest.raises(BafoError, match="at least 1"):
        gc.usage(full, depth=0)
