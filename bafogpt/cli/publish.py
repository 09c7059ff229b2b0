"""``bafogpt model publish``: a run's model, or a model folder, on the Hub, with a card that says what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.options import BandwidthOption, JsonOption, QuietOption
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.reports.publish import PublishOptions, Release
    from bafogpt.storage.folders.sync import SyncReport
    from bafogpt.storage.folders.uri import FolderLocation

SourceArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run, for its newest checkpoint, or a model folder here.")
]
TargetArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="hf://ORG/NAME[@REV]; a folder of a bucket (s3://, file://, models/NAME)."),
]
StepOption = Annotated[int | None, typer.Option("--step", help="That step's checkpoint in place of the newest.")]
BestOption = Annotated[bool, typer.Option("--best", help="The checkpoint with the lowest validation loss.")]
AdapterOption = Annotated[
    bool, typer.Option("--adapter", help="The adapter alone, as PEFT has it, in place of the merged model.")
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base-model", metavar="ORG/NAME", help="What training began with, by its name on the Hub."),
]
LicenceOption = Annotated[
    str, typer.Option("--license", metavar="ID", help="As the Hub spells it: apache-2.0. Default: gemma for a Gemma.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="Convert to bfloat16, float16 or float32.")
]
PublicOption = Annotated[bool, typer.Option("--public", help="The repository on the Hub may be seen by everybody.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the card and what would go where; send nothing.")]


def publish(
    source: SourceArgument,
    target: TargetArgument,
    step: StepOption = None,
    best: BestOption = False,
    adapter: AdapterOption = False,
    base_model: BaseOption = None,
    license_: LicenceOption = "",
    dtype: DtypeOption = None,
    public: PublicOption = False,
    dry_run: DryRunOption = False,
    max_bandwidth: BandwidthOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a run's model on the Hub (private unless --public), as transformers loads it, with a model card.

    The card comes from the run's records: data, hyperparameters, validation, cost, code, and a picture of the loss. A
    card that a person wrote stays. A fine-tuned model is merged into its base first. The same command given again after
    an interruption goes on; HF_TOKEN is read from the environment.
    """
    from pathlib import Path

    from bafogpt.core import files, settings
    from bafogpt.reports.publish import PublishOptions
    from bafogpt.storage.folders import sync
    from bafogpt.storage.folders.uri import locate
    from bafogpt.storage.hub import push
    from bafogpt.storage.transfer import bandwidth

    out, config = Output.of(json=json, quiet=quiet), settings.load()
    limit = bandwidth.Bandwidth(bandwidth.parse(max_bandwidth)) if max_bandwidth else None
    wish = PublishOptions(adapter=adapter, dtype=dtype, base_model=base_model, licence=license_)
    place = locate(target, config, "bucket")
    if place.hub is not None:
        push.require_allowed(place.hub, public=public)
    found = _found(source, step, best, wish, config)
    if dry_run:
        _show(out, found, place, public)
        return
    with files.scratch_folder(Path(config.home)) as scratch:
        with out.progress("fetching", found.bytes, unit="B") as advance:
            folder = found.build(scratch, progress=advance)
        with out.progress("comparing", None, unit="B") as advance:
            plan = found.plan(folder, place, progress=advance)
        with out.progress("sending", plan.bytes_to_send, unit="B") as advance:
            report = sync.execute(plan, public=public, progress=advance, bandwidth=limit)
    _say(out, found, report)


def _found(source: str, step: int | None, best: bool, wish: PublishOptions, config: Settings) -> Release:
    """What is to be published: a folder where there is one of that name, else a run."""
    from pathlib import Path

    from bafogpt.core.errors import UsageError
    from bafogpt.model import runs
    from bafogpt.reports import publish as release
    from bafogpt.storage.bucket import Bucket

    if step is not None and best:
        raise UsageError("--step and --best name two checkpoints", "leave one of them out")
    bucket = Bucket.open(config.bucket, config)
    if Path(source).is_dir():
        if step is not None or best:
            raise UsageError(f"{source} is a folder: it has no checkpoints", "leave --step and --best out")
        return release.from_folder(bucket, Path(source), wish, config)
    return release.of_run(bucket, runs.find(bucket, source.removeprefix("runs/"), step, best=best), wish, config)


def _facts(found: Release) -> dict[str, Any]:
    step = found.run.checkpoint.step if found.run else None
    return {"run": found.run.name if found.run else None, "step": step, "adapter": found.wish.adapter}


def _show(out: Output, found: Release, place: FolderLocation, public: bool) -> None:
    """A dry run: the card, and in one line what would be done."""
    from bafogpt.storage.hub import card

    text = card.write(place.url, found.facts, 0, 0).decode()
    seen = "for everybody to see" if public else "private"
    where = f"{place.url}, {seen}" if place.hub else place.url
    record = {**_facts(found), "target": place.url, "public": public, "bytes": found.bytes, "card": text}
    out.result(record, text, id=place.url)
    out.say(f"{found.bytes / 1e6:,.1f} MB would be read, and the model sent to {where}")


def _say(out: Output, found: Release, report: SyncReport) -> None:
    from dataclasses import asdict

    text = (
        f"{report.target}: {report.files} files, {report.bytes / 1e6:,.1f} MB;"
        f" sent {report.sent_files} ({report.sent_bytes / 1e6:,.1f} MB)\nverified by {report.verified_by}"
    )
    out.result({**asdict(report), **_facts(found)}, text, id=report.target)
