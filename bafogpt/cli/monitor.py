"""``bafogpt cloud top`` and ``bafogpt cloud tensorboard``: watch a run, through its bucket."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.access import run_store
from bafogpt.cli.console.log_progress import bar
from bafogpt.cli.console.options import BucketOption, RunArgument
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from rich.text import Text

    from bafogpt.reports.status import Snapshot

EveryOption = Annotated[
    float, typer.Option("--every", min=0.2, metavar="SECONDS", help="Seconds between two reads of the bucket.")
]


def top(
    run: RunArgument,
    out: Output,
    once: Annotated[bool, typer.Option("--once", help="Print the status once and return.")] = False,
    every: EveryOption = 2.0,
    bucket: BucketOption = None,
) -> None:
    """Show a run live: step, loss, speed, time left, cost, and its GPUs, CPU, memory and disk."""
    import itertools

    from bafogpt.core import settings
    from bafogpt.reports import status

    zar_per_usd = settings.load().zar_per_usd
    snapshots = status.follow(status.StatusReader(run_store(bucket), run).read, every)
    if once:
        first = next(snapshots)
        out.result(first.to_dict(), _screen(first, zar_per_usd), first.state)
    elif sys.stdout.isatty() and not out.json and not out.quiet:
        from rich.live import Live

        first = next(snapshots)  # an unknown run is an error without a screen
        with Live(_screen(first, zar_per_usd), auto_refresh=False) as live:
            for snapshot in itertools.chain([first], snapshots):
                live.update(_screen(snapshot, zar_per_usd), refresh=True)
    else:
        for snapshot in snapshots:
            out.event(snapshot.to_dict(), status.line(snapshot))


def tensorboard(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs; 'bafogpt runs ls' lists them.")],
    out: Output,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the event files to DIR and return.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=1, max=65535, help="Port on this machine. Default: 6006, or the next free one."
        ),
    ] = None,
    every: EveryOption = 5.0,
    bucket: BucketOption = None,
) -> None:
    """Show runs in TensorBoard on this machine, live from the bucket, until Ctrl-C."""
    import hashlib

    from bafogpt.core import settings
    from bafogpt.reports import tensorboard as board

    board.require_installed()
    store = run_store(bucket)
    name = runs[0] if len(runs) == 1 else f"{runs[0]}+{hashlib.sha256(' '.join(runs).encode()).hexdigest()[:8]}"
    folder = export or Path(settings.load().home) / "tensorboard" / name
    exports = [board.TensorBoardExport(store, run, folder) for run in dict.fromkeys(runs)]
    lines = sum(each.update() for each in exports)
    if export is not None:
        for each in exports:
            each.close()
        text = f"wrote {lines:,} lines of {', '.join(runs)} to {export}; show them: tensorboard --logdir {export}"
        out.result({"runs": runs, "folder": str(export), "lines": lines}, text, str(export))
        return
    url = board.start(folder, port)
    out.event({"runs": runs, "url": url}, url)
    out.say("Ctrl-C stops it")
    board.keep_updating(exports, every)


def _screen(snapshot: Snapshot, zar_per_usd: float) -> Text:
    """A snapshot for people, as text alone, so that it is the same in a pipe."""
    from rich.text import Text

    from bafogpt.reports import formatting, status
    from bafogpt.reports.terminal import STYLES

    text = Text()
    text.append(snapshot.name, "bold")
    text.append(f"  {snapshot.state}", STYLES.get(snapshot.state, "bold"))
    text.append(f"  {snapshot.message}\n" if snapshot.message else "\n")
    done = snapshot.training.step / snapshot.training.steps if snapshot.training.steps else 0.0
    text.append(f"{bar(done, width=50)} {formatting.percent(done)}\n", "cyan")
    found = status.facts(snapshot, zar_per_usd)
    for machine in snapshot.machines:
        name = f"node {machine['node']}" if len(snapshot.machines) > 1 else "machine"
        for index, part in enumerate(status.describe_machine(machine)):
            found.append((name if index == 0 else "", part))
    for name, value in found:
        text.append(f"{name:<12}", "dim")
        text.append(f"{value}\n")
    if snapshot.silent_s is not None:
        text.append(f"no record for {formatting.duration(snapshot.silent_s)}: ", "bold red")
        text.append(f"bafogpt cloud status {snapshot.name}\n")
    text.rstrip()
    return text
