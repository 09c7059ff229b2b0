"""Exports the result of a fine-tuning run: its adapter in PEFT's format, or merged with its base.

The run's checkpoint holds only the adapter. Its base is the job's initial checkpoint in the bucket. The adapter stores
a hash of the base, so a base that has been trained since is refused.
"""

from __future__ import annotations

from pathlib import Path

from bafogpt.core import files, terms
from bafogpt.core.errors import ConfigError, NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.folders.uri import locate
from bafogpt.model import eval_samples, export, lora, pull, runs
from bafogpt.model import merge as merging
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.formats.safetensors_io import Advance
from bafogpt.model.merge import MergeComparison, MergeTarget
from bafogpt.model.runs import RunModel
from bafogpt.storage.bucket import Bucket, ProgressCallback
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.tokens import manifest as manifests

TEMPLATE = "chat_template.jinja"


def merge_target(run: RunModel) -> MergeTarget:
    """Which base the adapter was trained on: the dequantised or the original one."""
    return "dequantised" if run.adapter and run.adapter.get("base") == "nf4" else "original"


def export_adapter(
    bucket: Bucket,
    run: RunModel,
    scratch: Path,
    out: Path,
    *,
    base: str = "",
    progress: ProgressCallback = lambda _: None,
) -> Path:
    """Write the run's adapter and the base's licence files to the new folder ``out``, which ``peft`` loads.

    ``base`` is the name of the base model, by default its folder in the bucket. Raises
    :class:`~bafogpt.core.errors.ConflictError` where ``out`` exists, and what
    :func:`bafogpt.model.lora.from_checkpoint` raises."""
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
    """Raise :class:`ConfigError` where the run began with random weights, which are not stored."""
    if not run.base_folder:
        raise ConfigError(
            f"the base of run {run.name} is random weights, which are in no bucket",
            "export only the adapter: publish with --adapter, or export without --merge",
        )


def fetch_base(
    bucket: Bucket, run: RunModel, scratch: Path, settings: Settings, *, progress: ProgressCallback = lambda _: None
) -> ModelFolder:
    """Fetch the run's base model to a folder below ``scratch``. Raises what :func:`require_base` raises."""
    require_base(run)
    if bucket.exists(f"{run.base_folder}/config.json"):
        return pull.fetch(
            locate(f"{bucket.url}/{run.base_folder}", settings), scratch / "base", settings, progress=progress
        )
    found = runs.find(bucket, run.base_folder.removeprefix("runs/"))
    export.write(runs.fetch(bucket, found, scratch / "run", progress=progress), scratch / "base", "hf")
    return ModelFolder.open(scratch / "base")


def export_merged(
    bucket: Bucket,
    run: RunModel,
    scratch: Path,
    out: Path,
    settings: Settings,
    *,
    into: MergeTarget | None = None,
    fetched: ProgressCallback = lambda _: None,
    written: Advance = lambda _: None,
) -> MergeComparison:
    """Write the merge of the run's adapter and base, with its chat template, to the new folder ``out``; compare both.

    Raises what :func:`export_adapter`, :func:`fetch_base` and :func:`bafogpt.model.merge.merge` raise.
    """
    files.require_new(out)
    base = fetch_base(bucket, run, scratch, settings, progress=fetched)
    adapter = export_adapter(bucket, run, scratch / "checkpoint", scratch / "adapter", progress=fetched)
    found = merging.merge(
        base.path,
        adapter,
        out,
        eval_samples.text_samples(base, ["starter"], settings),
        into=into or merge_target(run),
        changes=runs.origin(bucket, run).changes,
        progress=written,
    )
    template = _template(bucket, run)
    if template and (out / "tokenizer.json").is_file():
        files.write_atomic(out / TEMPLATE, template)
    return found


def _template(bucket: Bucket, run: RunModel) -> str:
    """The prompt style of the run's data, as Jinja; empty for plain text or a deleted dataset."""
    try:
        manifest = manifests.load(bucket.child(str((run.train.get("data") or {}).get("path") or "")))
    except NotFoundError:
        return ""
    return manifest.packing.template if manifest.packing else ""
