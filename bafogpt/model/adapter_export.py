"""What came of a fine-tuning run: its adapter as PEFT has it, the base below it, and both as one model.

The run's checkpoint holds the adapter alone. Its base is what the job began with, in the bucket; the adapter knows it
by a hash, so that a base that has been trained further since is refused.
"""

from __future__ import annotations

from pathlib import Path

from bafogpt.core import files, terms
from bafogpt.core.errors import ConfigError, NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.model import eval_samples, export, lora, pull, runs
from bafogpt.model import merge as merging
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.formats.safetensors_io import SHARD_BYTES, Advance
from bafogpt.model.merge import MergeComparison, MergeTarget
from bafogpt.model.runs import RunModel
from bafogpt.storage.bucket import Bucket, ProgressCallback
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.folders.uri import locate
from bafogpt.storage.tokens import manifest as manifests

TEMPLATE = "chat_template.jinja"


def merge_target(run: RunModel) -> MergeTarget:
    """The base that the adapter was trained on: as 4 bits made it, or as it is on disk."""
    return "dequantised" if run.adapter and run.adapter.get("base") == "nf4" else "original"


def adapter(
    bucket: Bucket,
    run: RunModel,
    scratch: Path,
    out: Path,
    *,
    base: str = "",
    progress: ProgressCallback = lambda _: None,
) -> Path:
    """Write the run's adapter as the new folder ``out``, which ``peft`` loads; a few megabytes.

    Terms of the base's licence go with it.
    ``base`` is the name of the model that it is for, the one in the bucket by default. Raises :class:`ConfigError`
    where the run has trained a whole model, :class:`ConflictError` where ``out`` is there already, and what
    :func:`bafogpt.model.lora.from_checkpoint` raises.
    """
    files.require_new(out)
    store = CheckpointStore(bucket.child(f"runs/{run.name}/checkpoints"))
    folder = store.fetch(run.checkpoint, scratch, progress=progress)
    content, config, gpt, digest = lora.from_checkpoint(folder)
    lora.save(out, content, config, gpt, base=base or run.base_folder, base_digest=digest)
    origin = runs.origin(bucket, run)
    folders.copy_files(runs.fetch_terms(bucket, origin, scratch / "terms"), out)
    terms.add_notice(out, origin.model, origin.changes or ())
    return out


def require_base(run: RunModel) -> None:
    """Raise :class:`ConfigError` where the run began with random weights, which are nowhere."""
    if not run.base_folder:
        raise ConfigError(
            f"run {run.name} put its adapter on random weights, which are in no bucket",
            "take the adapter alone: --adapter to publish it, bafogpt model export without --merge",
        )


def base(
    bucket: Bucket, run: RunModel, scratch: Path, settings: Settings, *, progress: ProgressCallback = lambda _: None
) -> ModelFolder:
    """What the run began with, as a model folder below ``scratch``.

    Raises what :func:`require_base` raises.
    """
    require_base(run)
    if bucket.exists(f"{run.base_folder}/config.json"):
        return pull.fetch(
            locate(f"{bucket.url}/{run.base_folder}", settings), scratch / "base", settings, progress=progress
        )
    found = runs.find(bucket, run.base_folder.removeprefix("runs/"))
    export.write(runs.fetch(bucket, found, scratch / "run", progress=progress), scratch / "base", "hf")
    return ModelFolder.open(scratch / "base")


def merged(
    bucket: Bucket,
    run: RunModel,
    scratch: Path,
    out: Path,
    settings: Settings,
    *,
    into: MergeTarget | None = None,
    shard_bytes: int = SHARD_BYTES,
    fetched: ProgressCallback = lambda _: None,
    written: Advance = lambda _: None,
) -> MergeComparison:
    """Write the run's adapter and its base as one model, the new folder ``out``, and hold it against the two apart.

    It talks in the style that it was trained in: the chat template goes with it. Raises what :func:`adapter`,
    :func:`base` and :func:`bafogpt.model.merge.merge` raise.
    """
    files.require_new(out)
    below = base(bucket, run, scratch, settings, progress=fetched)
    pairs = adapter(bucket, run, scratch / "checkpoint", scratch / "adapter", progress=fetched)
    found = merging.merge(
        below.path,
        pairs,
        out,
        eval_samples.text_samples(below, ["starter"], settings),
        into=into or merge_target(run),
        changes=runs.origin(bucket, run).changes,
        shard_bytes=shard_bytes,
        progress=written,
    )
    template = _template(bucket, run)
    if template and (out / "tokenizer.json").is_file():
        files.write_atomic(out / TEMPLATE, template)
    return found


def _template(bucket: Bucket, run: RunModel) -> str:
    """The prompt style of the run's data, as Jinja; empty where the dataset is gone or is running text."""
    try:
        manifest = manifests.load(bucket.child(str((run.train.get("data") or {}).get("path") or "")))
    except NotFoundError:
        return ""
    return manifest.packing.template if manifest.packing else ""
