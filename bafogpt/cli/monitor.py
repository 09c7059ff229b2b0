"""``bafogpt cloud top`` and ``bafogpt cloud tensorboard``: looking at a run while it works, through the bucket."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.log_progress import bar
from bafogpt.cli.console.options import BucketOption, JsonOption, QuietOption, RunArgument
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bafogpt.reports.status import Snapshot
    from bafogpt.runs.store import RunStore

EveryOption = Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often to look.")]
RunsArgument = Annotated[list[str], typer.Argument(metavar="RUN…", help="Names, as 'bafogpt runs ls' shows them.")]


def top(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Look once, and return.")] = False,
    every: EveryOption = 2.0,
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how a run is, live: step, loss, speed, time left, cost, and its GPUs, CPU, memory and disk."""
    import itertools

    from bafogpt.core import settings
    from bafogpt.reports import status as looking

    out = Output.of(json=json, quiet=quiet)
    rand = settings.load().zar_per_usd
    reader = looking.StatusReader(_store(bucket), run)
    snapshots = looking.follow(reader.read, every)
    if once:
        first = next(snapshots)
        out.result(first.to_dict(), _screen(first, rand), first.state)
    elif sys.stdout.isatty() and not json and not quiet:
        from rich.live import Live

        begun = next(snapshots)  # an unknown run is an error, not a screen
        with Live(_screen(begun, rand), auto_refresh=False) as live:
            for snapshot in itertools.chain([begun], snapshots):
                live.update(_screen(snapshot, rand), refresh=True)
    else:
        for snapshot in snapshots:
            out.event(snapshot.to_dict(), looking.line(snapshot))


def tensorboard(
    runs: RunsArgument,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the event files here, and return.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port on this machine; default: 6006 if free.")
    ] = None,
    every: EveryOption = 5.0,
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show runs in TensorBoard, on this machine and live, from the bucket. Ctrl-C ends it."""
    import hashlib

    from bafogpt.core import settings
    from bafogpt.reports import tensorboard as boards

    out = Output.of(json=json, quiet=quiet)
    boards.require()
    store = _store(bucket)
    name = runs[0] if len(runs) == 1 else f"{runs[0]}+{hashlib.sha256(' '.join(runs).encode()).hexdigest()[:8]}"
    folder = export or Path(settings.load().home) / "tensorboard" / name
    exports = [boards.Export(store, run, folder) for run in dict.fromkeys(runs)]
    lines = sum(each.update() for each in exports)
    if export is not None:
        for each in exports:
            each.close()
        out.result(
            {"runs": runs, "folder": str(export), "lines": lines},
            f"{lines:,} lines of {', '.join(runs)} are in {export}; see them: tensorboard --logdir {export}",
            str(export),
        )
        return
    with boards.serving(folder, port) as url:
        out.event({"runs": runs, "url": url}, url)
        out.say("Ctrl-C ends it")
        boards.keep_up(exports, every)


def _store(bucket: str | None) -> RunStore:
    from bafogpt.core import settings
    from bafogpt.runs.store import RunStore
    from bafogpt.storage.bucket import Bucket

    config = settings.load({"bucket": bucket})
    return RunStore(Bucket.open(config.bucket, config))


def _screen(snapshot: Snapshot, zar_per_usd: float) -> RenderableType:
    """A snapshot for people: text alone, so that it reads the same in a pipe."""
    from rich.text import Text

    from bafogpt.reports import formatting
    from bafogpt.reports import status as looking
    from bafogpt.reports.terminal import STYLES

    text = Text()
    text.append(snapshot.name, "bold")
    text.append(f"  {snapshot.state}", STYLES.get(snapshot.state, "bold"))
    text.append(f"  {snapshot.message}\n" if snapshot.message else "\n")
    done = snapshot.training.step / snapshot.training.steps if snapshot.training.steps else 0.0
    text.append(f"{bar(done, width=50)} {formatting.percent(done)}\n", "cyan")
    found = looking.facts(snapshot, zar_per_usd)
    for machine in snapshot.machines:
        name = f"node {machine['node']}" if len(snapshot.machines) > 1 else "machine"
        for index, part in enumerate(looking.describe_machine(machine)):
            found.append((name if index == 0 else "", part))
    for name, value in found:
        text.append(f"{name:<12}", "dim")
        text.append(f"{value}\n")
    if snapshot.silent_s is not None:
        text.append(f"no record for {formatting.duration(snapshot.silent_s)}: ", "bold red")
        text.append(f"bafogpt cloud status {snapshot.name}\n")
    text.rstrip()
    return text
