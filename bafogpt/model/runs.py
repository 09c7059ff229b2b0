"""The model of a run: its newest whole checkpoint, and the tokenizer that its data was made with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files
from bafogpt.core.errors import CorruptError, NotFoundError, RunNotFoundError, did_you_mean
from bafogpt.data.vocabulary.files import config_of
from bafogpt.model.checkpoint import CheckpointFolder
from bafogpt.model.export import Export, of_checkpoint
from bafogpt.model.folder import BESIDE
from bafogpt.storage.bucket import Bucket, Progress
from bafogpt.storage.checkpoints.store import Checkpoint, CheckpointStore
from bafogpt.storage.tokens import manifest as manifests

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class RunModel:
    """What a run has to export."""

    name: str
    record: dict[str, Any]
    """``run.json``."""
    checkpoint: Checkpoint


def find(bucket: Bucket, name: str, step: int | None = None) -> RunModel:
    """The newest checkpoint of a run, or that of ``step``; nothing is fetched yet.

    Raises :class:`RunNotFoundError`, and :class:`NotFoundError` where the run has no such checkpoint.
    """
    run = bucket.child(f"runs/{name}")
    try:
        record = json.loads(run.get("run.json"))
    except NotFoundError:
        near = did_you_mean(name, bucket.folders("runs"))
        raise RunNotFoundError(f"no run '{name}' in {bucket.url}{near}", "bafogpt runs ls") from None
    except ValueError as error:
        raise CorruptError(f"{run.url}/run.json: {error}", f"bafogpt runs show {name}") from None
    complete = CheckpointStore(run.child("checkpoints")).complete()
    found = [each for each in complete if step is None or each.step == step]
    if not found:
        steps = ", ".join(str(each.step) for each in complete) or "none"
        what = (
            "no complete checkpoint" if step is None else f"no complete checkpoint of step {step} (there are: {steps})"
        )
        raise NotFoundError(f"run {name} has {what}", f"bafogpt runs show {name}")
    return RunModel(name, record, found[-1])


def fetch(bucket: Bucket, run: RunModel, into: Path, *, progress: Progress = lambda _: None) -> Export:
    """The run's checkpoint on this disk, every byte verified, ready to be written in another format.

    ``into`` holds the whole checkpoint, the optimizer's state too, for as long as the export is read.
    """
    store = CheckpointStore(bucket.child(f"runs/{run.name}/checkpoints"))
    folder = store.fetch(run.checkpoint, into, progress=progress)
    return of_checkpoint(CheckpointFolder.open(folder), _tokenizer(bucket, run, into / "tokenizer"))


def _tokenizer(bucket: Bucket, run: RunModel, into: Path) -> list[Path]:
    """The files of the run's tokenizer: the whole set of the model that it began with, if that is the tokenizer of its
    data; else what lies with the data. None for the built-in bytes."""
    train = run.record.get("job", {}).get("train", {})
    dataset = bucket.child(str(train.get("data", {}).get("path", "")))
    try:
        wanted = manifests.load(dataset).tokenizer.digest
    except NotFoundError:
        return []
    began = train.get("model", {}).get("checkpoint") or ""
    for place in filter(None, (began, f"{train['data']['path']}/tokenizer")):
        found = _fetch_tokenizer(bucket.child(place), wanted, into)
        if found:
            return found
    return []


def _fetch_tokenizer(source: Bucket, wanted: str, into: Path) -> list[Path]:
    try:
        raw = source.get(TOKENIZER)
    except NotFoundError:
        return []
    if digest.of_bytes(raw) != wanted:
        return []
    files.write_atomic(into / TOKENIZER, raw)
    for info in source.list():
        if info.path in BESIDE and info.path != TOKENIZER:
            source.download(info.path, into / info.path)
    if not (into / "tokenizer_config.json").exists():  # transformers wants one
        from tokenizers import Tokenizer as Engine

        files.write_atomic(into / "tokenizer_config.json", config_of(Engine.from_file(str(into / TOKENIZER))))
    return sorted(into.iterdir())
