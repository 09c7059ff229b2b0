"""``bafogpt model publish``: publish a run's model, or a model folder, with a model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.options import (
    BestOption,
    DtypeOption,
    PublicOption,
    RunOrFolderArgument,
    SendDryRunOption,
    StepOption,
    TransferFlags,
)
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.folders.sync import SyncReport
    from bafogpt.folders.uri import FolderLocation
    from bafogpt.reports.publish import Release


@dataclass(frozen=True, kw_only=True)
class PublishFlags(TransferFlags):
    """What is published, and how."""

    step: StepOption = None
    best: BestOption = False
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Publish the adapter alone, in PEFT's format, instead of a merged model.")
    ] = False
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ORG/NAME", help="Base model named in the card. Default: the run's."),
    ] = None
    licence: Annotated[
        str,
        typer.Option(
            "--license", metavar="ID", help="License in the card, e.g. apache-2.0. Default: gemma for a Gemma model."
        ),
    ] = ""
    dtype: DtypeOption = None
    public: PublicOption = False
    dry_run: SendDryRunOption = False


def publish(
    source: RunOrFolderArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="hf://ORG/NAME[@REV], or a folder of a bucket (s3://, models/NAME).")
    ],
    flags: PublishFlags,
    out: Output,
) -> None:
    """Publish a model on the Hub (private unless --public), in transformers' format, with a model card.

    The card is made from the run's records: data, hyperparameters, validation, cost, code, and a plot of the loss; a
    card that you have written is kept. A fine-tuned model is merged into its base first. Repeat the command to resume
    after an interruption. HF_TOKEN is read from the environment.
    """
    from bafogpt.core import files, settings
    from bafogpt.folders import sync
    from bafogpt.folders.hub import push
    from bafogpt.folders.uri import locate

    config, bandwidth = settings.load(), flags.bandwidth
    place = locate(target, config, "bucket")
    if place.hub is not None:
        push.require_allowed(place.hub, public=flags.public)
    release = _release(source, flags, config)
    if flags.dry_run:
        _show(out, release, place, flags.public)
        return
    with files.scratch_folder(Path(config.home)) as scratch:
        with out.progress("fetching", release.bytes, unit="B") as advance:
            folder = release.build(scratch, progress=advance)
        with out.progress("comparing", None, unit="B") as advance:
            plan = release.plan(folder, place, progress=advance)
        with out.progress("sending", plan.bytes_to_send, unit="B") as advance:
            report = sync.execute(plan, public=flags.public, progress=advance, bandwidth=bandwidth)
    _print(out, release, report)


def _release(source: str, flags: PublishFlags, config: Settings) -> Release:
    """The folder ``source`` if it exists, else the run of that name."""
    from bafogpt.core.errors import UsageError
    from bafogpt.model import runs
    from bafogpt.reports import publish as releases
    from bafogpt.storage.bucket import Bucket

    step, best = flags.step, flags.best
    options = releases.PublishOptions(
        adapter=flags.adapter, dtype=flags.dtype, base_model=flags.base_model, licence=flags.licence
    )
    if step is not None and best:
        raise UsageError("--step and --best exclude each other", "leave one of them out")
    bucket = Bucket.open(config.bucket, config)
    if Path(source).is_dir():
        if step is not None or best:
            raise UsageError(f"{source} is a folder: it has no checkpoints", "leave --step and --best out")
        return releases.from_folder(bucket, Path(source), options, config)
    run = runs.find(bucket, source.removeprefix("runs/"), step, best=best)
    return releases.from_run(bucket, run, options, config)


def _facts(release: Release) -> dict[str, Any]:
    step = release.run.checkpoint.step if release.run else None
    return {"run": release.run.name if release.run else None, "step": step, "adapter": release.options.adapter}


def _show(out: Output, release: Release, place: FolderLocation, public: bool) -> None:
    """Print the card, and what would be sent."""
    from bafogpt.folders.hub import card

    text = card.write(place.url, release.facts, 0, 0).decode()
    seen = "public" if public else "private"
    where = f"{place.url}, {seen}" if place.hub else place.url
    record = {**_facts(release), "target": place.url, "public": public, "bytes": release.bytes, "card": text}
    out.result(record, text, id=place.url)
    out.say(f"would read {release.bytes / 1e6:,.1f} MB and send the model to {where}")


def _print(out: Output, release: Release, report: SyncReport) -> None:
    text = (
        f"{report.target}: {report.files} files, {report.bytes / 1e6:,.1f} MB;"
        f" sent {report.sent_files} ({report.sent_bytes / 1e6:,.1f} MB)\nverified by {report.verified_by}"
    )
    out.result({**asdict(report), **_facts(release)}, text, id=report.target)
