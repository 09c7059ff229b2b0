"""The model of a run: its newest complete checkpoint, and the tokenizer of its data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files, schema, terms
from bafogpt.core.errors import NotFoundError, RunNotFoundError, did_you_mean
from bafogpt.data.vocabulary.files import config_of
from bafogpt.model.export import Export, from_checkpoint
from bafogpt.model.formats.checkpoint import CheckpointFolder
from bafogpt.model.formats.folder import COMPANION_FILES
from bafogpt.storage.bucket import Bucket, ProgressCallback
from bafogpt.storage.checkpoints import retention
from bafogpt.storage.checkpoints.store import Checkpoint, CheckpointStore
from bafogpt.storage.tokens import manifest as manifests

TOKENIZER = "tokenizer.json"
CHAIN = 16
"""Most runs in a chain of continued runs; the origin of a longer chain is unknown."""


@dataclass(frozen=True)
class RunModel:
    """A run's checkpoint to export."""

    name: str
    record: dict[str, Any]
    """``run.json``."""
    checkpoint: Checkpoint

    @property
    def train(self) -> Mapping[str, Any]:
        """The ``train`` section of its resolved job."""
        return dict(self.record.get("job", {}).get("train") or {})

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        """The job's ``train.adapter``, if an adapter was trained."""
        found = self.train.get("adapter")
        return dict(found) if found else None

    @property
    def base_folder(self) -> str:
        """The initial weights: a folder of the bucket (``models/NAME``, ``runs/NAME``); empty for random ones."""
        return str((self.train.get("model") or {}).get("checkpoint") or "")


@dataclass(frozen=True)
class WeightsOrigin:
    """The model that the weights of a run were trained from."""

    folder: str
    """The model folder in the bucket; empty for random weights, or if it was deleted."""
    model: str
    """Its ``model_type``, or the job's ``model.name`` if the folder was deleted; empty for random weights."""
    changes: tuple[str, ...] | None
    """The training since, for :func:`bafogpt.model.formats.folder.write`; None for random weights."""


def find(bucket: Bucket, name: str, step: int | None = None, *, best: bool = False) -> RunModel:
    """The checkpoint of a run: the newest, that of ``step``, or the one with the lowest validation loss.

    Fetches nothing. Raises :class:`RunNotFoundError`, and :class:`NotFoundError` where there is no such checkpoint.
    """
    run = bucket.child(f"runs/{name}")
    try:
        record = schema.parse_json(run.get("run.json"), f"{run.url}/run.json")
    except NotFoundError:
        near = did_you_mean(name, bucket.folders("runs"))
        raise RunNotFoundError(f"no run '{name}' in {bucket.url}{near}", "bafogpt runs ls") from None
    complete = CheckpointStore(run.child("checkpoints")).complete()
    return RunModel(name, record, _chosen(complete, name, step, best))


def _chosen(complete: Sequence[Checkpoint], name: str, step: int | None, best: bool) -> Checkpoint:
    found = [each for each in complete if step is None or each.step == step]
    if not found:
        steps = ", ".join(str(each.step) for each in complete) or "none"
        which = "" if step is None else f" of step {step} (available: {steps})"
        raise NotFoundError(f"run {name} has no complete checkpoint{which}", f"bafogpt runs show {name}")
    if not best:
        return found[-1]
    lowest = retention.best_of(found)
    if lowest is None:
        message = f"no checkpoint of run {name} was validated, so none is the best"
        raise NotFoundError(message, "leave --best out for the newest, or name one: --step N")
    return lowest


def fetch(bucket: Bucket, run: RunModel, into: Path, *, progress: ProgressCallback = lambda _: None) -> Export:
    """Fetch the run's checkpoint, verified, for export. ``into`` holds it, including the optimizer's state."""
    store = CheckpointStore(bucket.child(f"runs/{run.name}/checkpoints"))
    folder = store.fetch(run.checkpoint, into, progress=progress)
    weights = origin(bucket, run)
    companions = [*_tokenizer(bucket, run, into / "tokenizer"), *fetch_terms(bucket, weights, into / "terms")]
    return from_checkpoint(CheckpointFolder.open(folder), companions, weights.changes)


def origin(bucket: Bucket, run: RunModel) -> WeightsOrigin:
    """Follow a run and the runs that it continued back to a model folder or random weights."""
    names, base_folder, train = [run.name], run.base_folder, run.train
    while base_folder.startswith("runs/") and len(names) < CHAIN:
        names.append(base_folder.removeprefix("runs/"))
        try:
            record = json.loads(bucket.get(f"{base_folder}/run.json"))
        except (NotFoundError, ValueError):
            break
        train = dict(record.get("job", {}).get("train") or {})
        base_folder = str((train.get("model") or {}).get("checkpoint") or "")
    if not base_folder:
        return WeightsOrigin("", "", None)
    try:
        model = str(json.loads(bucket.get(f"{base_folder}/config.json")).get("model_type"))
    except (NotFoundError, ValueError, AttributeError):
        base_folder, model = "", str((train.get("model") or {}).get("name") or "")
    return WeightsOrigin(base_folder, model, tuple(f"weights: trained by run {name}" for name in reversed(names)))


def fetch_terms(bucket: Bucket, weights: WeightsOrigin, into: Path) -> list[Path]:
    """Fetch the licence files of the folder that a run's weights come from."""
    if not weights.folder:
        return []
    source = bucket.child(weights.folder)
    names = [info.path for info in source.list() if terms.is_terms(info.path)]
    for name in names:
        files.write_atomic(into / name, source.get(name))
    return [into / name for name in names]


def _tokenizer(bucket: Bucket, run: RunModel, into: Path) -> list[Path]:
    """Fetch the tokenizer files of the run's initial model if they match its data, else those of the dataset; none for
    the built-in bytes."""
    path = str((run.train.get("data") or {}).get("path") or "")
    dataset = bucket.child(path)
    try:
        wanted = manifests.load(dataset).tokenizer.digest
    except NotFoundError:
        return []
    for place in filter(None, (run.base_folder, f"{path}/tokenizer")):
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
        if info.path in COMPANION_FILES and info.path != TOKENIZER:
            files.write_atomic(into / info.path, source.get(info.path))
    if not (into / "tokenizer_config.json").exists():  # transformers wants one
        from tokenizers import Tokenizer as FastTokenizer

        files.write_atomic(into / "tokenizer_config.json", config_of(FastTokenizer.from_file(str(into / TOKENIZER))))
    return sorted(into.iterdir())
