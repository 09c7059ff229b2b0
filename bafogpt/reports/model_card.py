"""The facts of a model card, from a run's records, for :mod:`bafogpt.folders.hub.card`.

A card is public and a record is not: only the facts named here are published, and no host, address or path of a
machine, nor the registry of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bafogpt.core import schema
from bafogpt.core.errors import BafoError, ConfigError, NotFoundError
from bafogpt.folders.hub import card
from bafogpt.reports import cost, plots
from bafogpt.reports.summary import Summary, summarise
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests

PLOT = "loss.png"
BASES = 8
"""Longest chain of runs, each started from the one before, that is followed to a published model."""
_SHOWN = ("tokens", "seed", "batch", "optimizer", "schedule", "adapter", "activation_checkpointing", "float8")
"""Parts of a job's ``train`` that are hyperparameters."""


def facts(
    bucket: Bucket, name: str, step: int, *, base_model: str | None = None, licence: str = "", adapter: bool = False
) -> dict[str, Any]:
    """The facts of run ``name`` at ``step``.

    ``base_model`` is the base's name on the Hub, by default from the records; ``adapter`` is for an adapter alone, not
    merged. Raises :class:`~bafogpt.core.errors.RunNotFoundError` and what the bucket raises.
    """
    store = RunStore(bucket)
    summary = until(summarise(store, name), step)
    record, train = summary.record, dict(summary.record.job.get("train") or {})
    data = dict(train.get("data") or {})
    samples = summary.samples
    found = {
        "run": name,
        "step": step,
        "samples": samples or None,
        "tokens": summary.tokens or None,
        "dataset": data.get("path"),
        "sequence_length": data.get("sequence_length"),
        "precision": train.get("precision"),
        "base_model": _base(bucket, store, record) if base_model is None else base_model,
        "license": licence,
        "adapter": adapter or None,
        "tuned": bool(train.get("adapter")) or None,
        "data": _data(bucket, record, str(data.get("path") or "")),
        "hyperparameters": _hyperparameters(train),
        "evaluation": evaluation(summary),
        "cost": _cost(store, record),
        "code": _code(record),
    }
    return {key: value for key, value in found.items() if value not in (None, "", {})} | {
        "base_model": found["base_model"]  # empty means that there is none
    }


def draw_plot(bucket: Bucket, name: str, step: int, path: Path) -> bool:
    """Draw the loss up to ``step`` as a PNG; False without metrics or without matplotlib."""
    summary = until(summarise(RunStore(bucket), name), step)
    if not summary.curve:
        return False
    try:
        plots.figure_png(summary, path, timeline_below=False)
    except ImportError:
        return False
    return True


def until(summary: Summary, step: int) -> Summary:
    """The run up to a step."""
    return replace(summary, lines=[line for line in summary.lines if line["step"] <= step])


def evaluation(summary: Summary) -> dict[str, Any]:
    """The last validation: loss and bits per byte, in total, by stage and by language; empty without one."""
    for line in reversed(summary.lines):
        if "validation_loss" in line:
            found = {
                "step": line["step"],
                "loss": line["validation_loss"],
                "bpb": line.get("validation_bpb"),
                "stages": line.get("validation_stages"),
                "languages": line.get("validation_languages"),
            }
            return {key: value for key, value in found.items() if value}
    return {}


def _base(bucket: Bucket, store: RunStore, record: RunRecord) -> str:
    """The published model that the run, or the first run of its chain, started from; empty without one, or with other
    sizes than the published ones."""
    for _ in range(BASES):
        model = dict((record.job.get("train") or {}).get("model") or {})
        began = str(model.get("checkpoint") or "")
        if not began or model.get("overrides"):
            return ""
        earlier = store.find(began.removeprefix("runs/")) if began.startswith("runs/") else None
        if earlier is None:
            return card.base_model({"model": model.get("name") or _published(bucket, began)})
        record = earlier
    return ""


def _published(bucket: Bucket, folder: str) -> str:
    """The published model with the sizes of a model folder of the bucket; empty without one."""
    from bafogpt.model.formats import families, hf_config

    try:
        content = schema.parse_json(bucket.get(f"{folder}/{hf_config.CONFIG}"), folder)
        name: str = hf_config.to_litgpt(content, folder).name
    except BafoError:
        return ""
    return name if name in families.NAMES else ""


def _data(bucket: Bucket, record: RunRecord, path: str) -> dict[str, Any]:
    """The dataset's digest as the run recorded it, and its stages if the dataset has not changed."""
    found: dict[str, Any] = {key: record.data[key] for key in ("digest", "tokenizer") if record.data.get(key)}
    try:
        manifest = manifests.load(bucket.child(path))
    except (NotFoundError, ConfigError):
        return found
    if manifest.digest != record.data.get("digest", manifest.digest):
        return found
    stages = [
        {
            "name": stage.name,
            "tokens": stage.tokens,
            "documents": stage.documents,
            "languages": list(stage.languages),
        }
        for stage in manifest.splits["train"].stages
    ]
    return {"digest": manifest.digest, "tokenizer": manifest.tokenizer.digest, "stages": stages}


def _hyperparameters(train: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optimizer.learning_rate": 2e-4}``; what is not set is left out."""
    flat = schema.flatten({key: train.get(key) for key in _SHOWN})
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in flat.items()
        if value is not None
    }


def _cost(store: RunStore, record: RunRecord) -> dict[str, Any]:
    """Hours, dollars and machines of all attempts."""
    spent = cost.of_run(store, record.name)
    machines: dict[str, None] = {}
    for place in record.machines:
        count = int(place.get("gpus") or 0)
        machines[
            f"{count} × {place['gpu']}" if count and place.get("gpu") else f"{place.get('cpus') or 1} CPU cores"
        ] = None
    found = {"hours": round(spent.hours, 4), "usd": round(spent.usd, 2), "machines": ", ".join(machines)}
    return {key: value for key, value in found.items() if value}


def _code(record: RunRecord) -> dict[str, str]:
    """The commit, the image's digest, and the versions that affect results."""
    found = {"git": record.git, "image": record.image_digest or ""}
    names = ("bafogpt", "python", "torch", "cuda", "litgpt", "bitsandbytes")
    return {key: value for key, value in {**found, **{n: record.versions.get(n, "") for n in names}}.items() if value}
