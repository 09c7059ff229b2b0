"""``bafogpt cloud ssh|cp|exec|port-forward|queue|reap``: into the machines of runs, and rid of forgotten ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.options import BucketOption, JsonOption, QuietOption, RunArgument, YesOption
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from bafogpt.launch.engines.base import Engine

CommandArgument = Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND…]", help="Run this instead.")]
NodeOption = Annotated[int, typer.Option("--node", metavar="N", min=0, help="Which node; 0 is the head.")]
ReapDryRunOption = Annotated[bool, typer.Option("--dry-run", help="List the machines and the reasons; end none.")]
OlderOption = Annotated[
    float | None, typer.Option("--older-than", metavar="HOURS", min=0, help="Those that were launched before that too.")
]


def ssh(run: RunArgument, command: CommandArgument = None, node: NodeOption = 0) -> None:
    """Open a terminal where a run is, or run COMMAND there and end as it does."""
    _become(_engine(run).shell(run, command or (), node))


def exec_(run: RunArgument, command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…")]) -> None:
    """Queue COMMAND beside a run, on its machine, and show its output. It goes on when you stop watching."""
    out = Output.of()
    for line in _engine(run).execute(run, command):
        out.event({"line": line}, line)


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path here, or RUN:PATH.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path here, or RUN:PATH.")],
) -> None:
    """Copy files to a run's machine (SRC RUN:DST) or from it (RUN:SRC DST); PATH is relative to the home there."""
    (from_run, from_path), (to_run, to_path) = _split(source), _split(target)
    if (from_run is None) == (to_run is None):
        raise UsageError("one of SRC and DST is RUN:PATH, the other a path here", "bafogpt cloud cp notes.txt RUN:")
    run = from_run or to_run
    assert run is not None
    _become(_engine(run).copy(run, from_path, to_path, upload=to_run is not None))


def port_forward(
    run: RunArgument,
    port: Annotated[str, typer.Argument(metavar="[HERE:]THERE", help="Port of the run's machine, and of this one.")],
) -> None:
    """Make a port of a run's machine one of this machine, until you press Ctrl-C."""
    here, _, there = port.rpartition(":")
    if not there.isdigit() or not (here or there).isdigit():
        raise UsageError(f"{port}: not a port, and not HERE:THERE", f"bafogpt cloud port-forward {run} 6006")
    words = _engine(run).forward(run, int(here or there), int(there))
    Output.of().say(f"http://127.0.0.1:{here or there} is port {there} of {run}; Ctrl-C ends it")
    _become(words)


def queue(run: RunArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List what was started for a run: its job, and the commands of 'cloud exec'."""
    jobs = [asdict(job) for job in _engine(run).queue(run)]
    Output.of(json=json, quiet=quiet).rows(jobs, columns=["id", "name", "state", "submitted"], id="id")


def reap(
    older_than: OlderOption = None,
    bucket: BucketOption = None,
    dry_run: ReapDryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """End rented machines that nothing else would end: no autodown, over their limit, or with a dead run."""
    from bafogpt.core import settings
    from bafogpt.launch import reap as reaping
    from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine

    out = Output.of(json=json, quiet=quiet)
    engine = SkyPilotEngine(settings.load({"bucket": bucket}))
    found = reaping.find(engine.client, engine.status_reader.record, older_than_hours=older_than)
    columns = ["name", "reason", "hours", "location", "price_per_hour", "outcome"]
    if dry_run or not found:
        out.rows([asdict(each) for each in found], columns, id="name")
        out.say(f"{len(found)} to reap" if found else "nothing to reap")
        return
    if not yes:
        Output.of().rows([asdict(each) for each in found], columns[:-1], id="name")
    if not out.confirm(f"end {', '.join(each.name for each in found)}?", yes):
        raise typer.Exit(1)
    ended = [reaping.end(engine.teardown, engine.down, each) for each in found]
    out.rows([asdict(each) for each in ended], columns, id="name")
    if any(each.outcome not in reaping.SUCCESSES for each in ended):
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command()(ssh)
    app.command("exec")(exec_)
    app.command()(cp)
    app.command()(port_forward)
    app.command()(queue)
    app.command()(reap)


def _engine(run: str) -> Engine:
    from bafogpt.core import settings
    from bafogpt.launch.engines import engine_of

    return engine_of(run, settings.load())


def _become(words: list[str]) -> None:
    """Go on as another program: its terminal, its signals and its exit code are this command's."""
    import os
    import shutil

    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]} is not installed here", f"apt-get install {words[0]}")
    os.execvp(words[0], words)  # noqa: S606


def _split(text: str) -> tuple[str | None, str]:
    """``RUN:PATH`` as run and path; a path here has no run, and may have a colon after a slash."""
    run, colon, path = text.partition(":")
    if not colon or "/" in run or PurePosixPath(run).name != run:
        return None, text
    return run, path or "."
