"""``bafogpt runs``: the records of runs in the bucket, also of runs whose machine is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bafogpt.cli.console.access import run_store
from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import BucketOption, LaunchFlags, RunArgument
from bafogpt.cli.console.output import Output

app = App(help="Show runs: state, logs, cost, report; compare them, run them again.", no_args_is_help=True)

COLUMNS = ["name", "state", "step", "steps", "attempts", "restarts", "updated", "message"]


@app.command()
def ls(out: Output, bucket: BucketOption = None) -> None:
    """List every run in the bucket."""
    from bafogpt.core import schema

    store = run_store(bucket)
    records = [schema.to_dict(record) for record in map(store.find, store.names()) if record is not None]
    if not records:
        out.say(f"no runs in {store.bucket.url}")
    out.rows(records, columns=COLUMNS, id="name")


@app.command()
def show(
    run: RunArgument,
    out: Output,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report, with plots, to FILE.")
    ] = None,
    bucket: BucketOption = None,
) -> None:
    """Show a summary of a run; with --html also write the whole report."""
    from bafogpt.core import files, settings
    from bafogpt.reports.html import page
    from bafogpt.reports.summary import summarise
    from bafogpt.reports.terminal import summary_text

    zar_per_usd = settings.load().zar_per_usd
    summary = summarise(run_store(bucket), run)
    if html is not None:
        files.write_atomic(html, page(summary))
        out.say(f"the report is in {html}")
    out.result(summary.to_dict(), summary_text(summary, zar_per_usd=zar_per_usd), run)


@app.command()
def logs(run: RunArgument, bucket: BucketOption = None) -> None:
    """Print the whole log of a run, from the bucket."""
    store = run_store(bucket)
    store.load(run)
    print(store.logs(run), end="")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Name of a run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Name of another run.")],
    out: Output,
    bucket: BucketOption = None,
) -> None:
    """Compare two runs: job, data, code, image, versions, machine, results. -q prints only the keys that differ."""
    from bafogpt.reports.diff import SECTIONS, differences

    found = differences(run_store(bucket), a, b)
    if out.json:
        sections = {section: {e.key: [e.a, e.b] for e in found if e.section == section} for section in SECTIONS}
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
def rerun(run: RunArgument, options: LaunchFlags, out: Output) -> None:
    """Launch the job of RUN again under a new name, with the same data, GPUs and container image.

    Options override those of RUN. The launch fails if the dataset has changed since RUN, and prints a message if the
    code has changed.
    """
    from dataclasses import replace

    from bafogpt.cli import cloud
    from bafogpt.jobs import project, resolve
    from bafogpt.launch import code_snapshot
    from bafogpt.launch.plan import LOCAL

    record = run_store(options.bucket).load(run)
    infra = options.infra or record.infra
    if changed := code_snapshot.describe_change(record, project.root()):
        out.say(changed)
    image = options.image or (record.image if infra != LOCAL else None)
    options = replace(options, gpus=options.gpus or record.gpus or None, infra=infra, image=image)
    cloud.launch(f"{resolve.PREFIX}{run}", options, out)


@app.command()
def verify(run: RunArgument, out: Output, bucket: BucketOption = None) -> None:
    """Verify that a run read every sample once and in order, and that its checkpoints are intact."""
    from bafogpt.core.errors import CorruptError
    from bafogpt.runs import store as runs

    store = run_store(bucket)
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
