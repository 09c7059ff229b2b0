"""A run's model, or a model folder, prepared for publication with its card and its plot.

:func:`from_run` and :func:`from_folder` check the source; :meth:`Release.build` creates the folder,
:meth:`Release.plan` compares it with the target, and :func:`bafogpt.folders.sync.execute` sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bafogpt.core import terms
from bafogpt.core.errors import ConfigError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.folders import manifest, sync
from bafogpt.folders.hub import card
from bafogpt.folders.sync import SyncPlan
from bafogpt.folders.uri import FolderLocation, locate
from bafogpt.model import adapter_export, export, runs
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.runs import RunModel
from bafogpt.reports import model_card
from bafogpt.storage.bucket import Bucket, ProgressCallback


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How a model is published."""

    adapter: bool = False
    """Publish the adapter alone, in PEFT's format, not merged into its base."""
    dtype: str | None = None
    base_model: str | None = None
    """The base model's name on the Hub; by default from the records."""
    licence: str = ""

    def __post_init__(self) -> None:
        for option, value in (("--base-model", self.base_model), ("--license", self.licence)):
            if value and not card.WORD.fullmatch(value):
                raise UsageError(
                    f"{option} '{value}' is not valid on the Hub", "--base-model ORG/NAME, --license gemma"
                )
        if self.adapter and self.dtype:
            raise UsageError("--dtype converts a model, and --adapter publishes none", "leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model to publish."""

    bucket: Bucket
    run: RunModel | None
    """Its run; None for a folder."""
    folder: ModelFolder | None
    options: PublishOptions
    facts: Mapping[str, Any]
    """For the card and the manifest."""
    settings: Settings

    @property
    def bytes(self) -> int:
        """Bytes to read; a checkpoint includes the optimizer's state."""
        if self.folder is not None:
            return self.folder.bytes
        assert self.run is not None
        return sum(file.bytes for file in self.run.checkpoint.files)

    def build(self, scratch: Path, *, progress: ProgressCallback = lambda _: None) -> Path:
        """Create the folder to push below ``scratch``. Raises what fetching, merging and writing raise."""
        out = scratch / "model"
        if self.folder is not None:
            export.write(export.from_folder(self.folder).as_dtype(self.options.dtype), out, "hf", progress=progress)
            return out
        assert self.run is not None
        if self.options.adapter:
            base = str(self.facts.get("base_model") or "")
            adapter_export.export_adapter(
                self.bucket, self.run, scratch / "checkpoint", out, base=base, progress=progress
            )
        elif self.run.adapter is None:
            found = runs.fetch(self.bucket, self.run, scratch / "checkpoint", progress=progress)
            export.write(found.as_dtype(self.options.dtype), out, "hf")
        else:
            merged = scratch / "merged" if self.options.dtype else out
            adapter_export.export_merged(self.bucket, self.run, scratch, merged, self.settings, fetched=progress)
            if self.options.dtype:
                found = replace(export.open_folder(merged), changes=runs.origin(self.bucket, self.run).changes)
                export.write(found.as_dtype(self.options.dtype), out, "hf")
        return out

    def plan(self, folder: Path, target: FolderLocation, *, progress: ProgressCallback | None = None) -> SyncPlan:
        """Add plot and card to a folder of :meth:`build`, and compare it with the target."""
        facts = dict(self.facts)
        if self.run is not None:
            plot = folder / model_card.PLOT
            if model_card.draw_plot(self.bucket, self.run.name, self.run.checkpoint.step, plot):
                facts["picture"] = model_card.PLOT
        if target.hub is None:  # the card on the Hub is written by the push
            names = [path for path in folder.iterdir() if path.is_file()]
            size = sum(path.stat().st_size for path in names)
            (folder / card.CARD).write_bytes(card.write(target.url, facts, len(names), size))
        return sync.prepare(
            locate(str(folder.absolute()), self.settings, "local"), target, progress=progress, metadata=facts
        )


def from_run(bucket: Bucket, run: RunModel, options: PublishOptions, settings: Settings) -> Release:
    """A run at one of its checkpoints. Raises :class:`ConfigError` where it has no adapter and one is wished for, or
    where it has one and no base to be merged into."""
    if options.adapter and run.adapter is None:
        raise ConfigError(f"run {run.name} has trained a whole model, not an adapter", "leave --adapter out")
    if run.adapter is not None and not options.adapter:
        adapter_export.require_base(run)
    facts = model_card.facts(
        bucket,
        run.name,
        run.checkpoint.step,
        base_model=options.base_model,
        licence=options.licence or terms.licence_of(runs.origin(bucket, run).model),
        adapter=options.adapter,
    )
    return Release(bucket=bucket, run=run, folder=None, options=options, facts=facts, settings=settings)


def from_folder(bucket: Bucket, path: Path, options: PublishOptions, settings: Settings) -> Release:
    """A model folder on this machine; of its files what belongs to a model. Nothing is known of its training but what
    its manifest says. Raises what :meth:`ModelFolder.open` raises."""
    if options.adapter:
        raise UsageError(
            "--adapter is for a run; a folder is published as it is", f"bafogpt storage push {path} TARGET"
        )
    folder = ModelFolder.open(path)
    told = manifest.load(Bucket.open(path.absolute().as_uri(), settings))
    facts = dict(told.metadata) if told else {}
    own = terms.licence_of(str(folder.content.get("model_type")))
    facts["license"] = options.licence or facts.get("license") or own
    facts["base_model"] = str(facts.get("base_model") or "") if options.base_model is None else options.base_model
    return Release(bucket=bucket, run=None, folder=folder, options=options, facts=facts, settings=settings)
