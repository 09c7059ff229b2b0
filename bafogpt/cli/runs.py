"""``bafogpt runs``: what the bucket knows about runs, whether or not their machine is still there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.options import (
    BucketOption,
    DetachOption,
    DryRunOption,
    EnvOption,
    GpusOption,
    ImageOption,
    InfraOption,
    JsonOption,
    NameOption,
    QuietOption,
    RunArgument,
    SetOption,
    YesOption,
)
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.runs.store import RunStore

app = typer.Typer(help="Look at runs: state, logs, cost, report; compare them, run them again.", no_args_is_help=True)


@app.command()
def ls(bucket: BucketOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List every run that the bucket has a record of."""
    from bafogpt.core import schema

    out = Output.of(json=json, quiet=quiet)
    store = _store(bucket)
    records = [schema.to_dict(record) for record in map(store.find, store.names()) if record is not None]
    if not records:
        out.say(f"no runs in {store.bucket.url}")
    out.rows(
        records, columns=["name", "state", "step", "steps", "attempts", "restarts", "updated", "message"], id="name"
    )


@app.command()
def show(
    run: RunArgument,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report here as well.")] = None,
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a run: a summary here, and with --html the whole report as one file with pictures."""
    from bafogpt.core import files, settings
    from bafogpt.reports import report

    out = Output.of(json=json, quiet=quiet)
    summary = report.summarise(_store(bucket), run)
    if html is not None:
        files.write_atomic(html, report.html(summary))
        out.say(f"the report is in {html}")
    out.result(summary.to_dict(), report.terminal(summary, zar_per_usd=settings.load().zar_per_usd), run)


@app.command()
def logs(run: RunArgument, bucket: BucketOption = None) -> None:
    """Print everything a run has printed, from the bucket."""
    store = _store(bucket)
    store.load(run)
    print(store.logs(run), end="")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what differs between two runs: job, data, code, image, versions, place, results. -q prints the keys."""
    from bafogpt.reports import diff as compare

    out = Output.of(json=json, quiet=quiet)
    found = compare.runs(_store(bucket), a, b)
    if json:
        sections: dict[str, dict[str, list[object]]] = {section: {} for section in compare.SECTIONS}
        for each in found:
            sections[each.section][each.key] = [each.a, each.b]
        out.result({"a": a, "b": b, "differences": sections})
        return
    if not found:
        out.say(f"{a} and {b} do not differ")
    rows = [
        {
            "what": f"{each.section}.{each.key}",
            f"A: {a}": each.a,
            f"B: {b}": each.b,
            "change": "" if each.change is None else f"{each.change:+.1%}",
        }
        for each in found
    ]
    out.rows(rows, columns=["what", f"A: {a}", f"B: {b}", "change"], id="what")


@app.command()
def rerun(
    run: RunArgument,
    name: NameOption = None,
    gpus: GpusOption = None,
    infra: InfraOption = None,
    image: ImageOption = None,
    set_: SetOption = None,
    env: EnvOption = None,
    bucket: BucketOption = None,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Launch the job of RUN again under a new name: the same job and data, and the same image where there is one.

    What RUN was launched with counts unless it is given here. The data must be what RUN read; if the code is another,
    that is said.
    """
    from bafogpt.cli import cloud
    from bafogpt.jobs import project, resolve
    from bafogpt.launch import code_snapshot
    from bafogpt.launch.plan import LOCAL

    record = _store(bucket).load(run)
    where = infra or record.infra
    if changed := code_snapshot.describe_change(record, project.root()):
        Output.of(json=json, quiet=quiet).say(changed)
    cloud.launch(
        f"{resolve.PREFIX}{run}",
        name=name,
        gpus=gpus or record.gpus or None,
        infra=where,
        image=image or (record.image if where != LOCAL else None),
        set_=set_,
        env=env,
        bucket=bucket,
        detach=detach,
        dry_run=dry_run,
        yes=yes,
        json=json,
        quiet=quiet,
    )


@app.command()
def verify(run: RunArgument, bucket: BucketOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Prove from the bucket alone that a run read every sample once, in order, and that its checkpoints are whole."""
    from bafogpt.core.errors import CorruptError
    from bafogpt.runs import store as runs

    out = Output.of(json=json, quiet=quiet)
    store = _store(bucket)
    record = store.load(run)
    curve = runs.curve(store.metrics(run))
    wrong = runs.sample_gaps(curve)
    if record.state == "succeeded" and (not curve or curve[-1]["step"] != record.steps):
        wrong.append(f"the metrics end at step {curve[-1]['step'] if curve else 0} of {record.steps}")
    checkpoints = store.checkpoints(run)
    complete = checkpoints.complete()
    for checkpoint in complete:
        wrong += checkpoints.problems(checkpoint)
    if wrong:
        raise CorruptError(
            f"{run}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""), f"bafogpt runs logs {run}"
        )
    samples = curve[-1]["samples"][1] if curve else 0
    steps = ", ".join(str(checkpoint.step) for checkpoint in complete)
    out.result(
        {"name": run, "samples": samples, "checkpoints": [checkpoint.step for checkpoint in complete], "wrong": []},
        f"{run}: {samples:,} samples, each once and in order; checkpoints of steps {steps} verified",
        run,
    )


def _store(bucket: str | None) -> RunStore:
    from bafogpt.core import settings
    from bafogpt.runs.store import RunStore
    from bafogpt.storage.bucket import Bucket

    config = settings.load({"bucket": bucket})
    return RunStore(Bucket.open(config.bucket, config))
