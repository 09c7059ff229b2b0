"""``bafogpt cloud ssh|cp|exec|port-forward|queue|reap``: use the machines of runs, and end orphaned ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Annotated

import typer

from bafogpt.cli.console.access import engine_of
from bafogpt.cli.console.options import BucketOption, RunArgument, YesOption
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

REAP_COLUMNS = ["name", "reason", "hours", "location", "price_per_hour", "outcome"]


def ssh(
    run: RunArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND", help="Run COMMAND instead of a shell.")
    ] = None,
    node: Annotated[int, typer.Option("--node", metavar="N", min=0, help="Connect to node N; 0 is the head.")] = 0,
) -> None:
    """Open a shell on the machine of a run, or run COMMAND there and exit with its exit code."""
    _exec(engine_of(run).shell(run, command or (), node))


def exec_(
    run: RunArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Command to run.")],
) -> None:
    """Queue COMMAND on the machine of a run and print its output. Ctrl-C ends the printing, not COMMAND."""
    out = Output()
    for line in engine_of(run).execute(run, command):
        out.event({"line": line}, line)


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path on this machine, or RUN:PATH.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path on this machine, or RUN:PATH.")],
) -> None:
    """Copy files to the machine of a run (SRC RUN:DST) or from it (RUN:SRC DST).

    A PATH on the machine is relative to its home folder.
    """
    (from_run, from_path), (to_run, to_path) = _split(source), _split(target)
    if (from_run is None) == (to_run is None):
        raise UsageError("one of SRC and DST must be RUN:PATH, the other local", "bafogpt cloud cp notes.txt RUN:")
    run = from_run or to_run
    assert run is not None
    _exec(engine_of(run).copy(run, from_path, to_path, upload=to_run is not None))


def port_forward(
    run: RunArgument,
    port: Annotated[
        str,
        typer.Argument(
            metavar="[HERE:]THERE", help="Port on the run's machine, and the port on this machine if it differs."
        ),
    ],
) -> None:
    """Forward a port of the machine of a run to this machine, until Ctrl-C."""
    here, _, there = port.rpartition(":")
    if not there.isdigit() or not (here or there).isdigit():
        raise UsageError(f"{port}: not a port, and not HERE:THERE", f"bafogpt cloud port-forward {run} 6006")
    words = engine_of(run).forward(run, int(here or there), int(there))
    Output().say(f"http://127.0.0.1:{here or there} is port {there} of {run}; Ctrl-C stops forwarding")
    _exec(words)


def queue(run: RunArgument, out: Output) -> None:
    """List the jobs on the machine of a run: the run itself and the commands of 'cloud exec'."""
    jobs = [asdict(job) for job in engine_of(run).queue(run)]
    out.rows(jobs, columns=["id", "name", "state", "submitted"], id="id")


def reap(
    out: Output,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="HOURS", min=0, help="Also terminate machines launched more than HOURS ago."
        ),
    ] = None,
    bucket: BucketOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the machines and the reasons; terminate none.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Terminate orphaned machines: no autodown, past the limit of hours, or the run has ended."""
    from bafogpt.core import settings
    from bafogpt.launch import reap as reaping
    from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine

    engine = SkyPilotEngine(settings.load({"bucket": bucket}))
    found = reaping.find(engine.client, engine.status_reader.record, older_than_hours=older_than)
    if dry_run or not found:
        out.rows([asdict(each) for each in found], REAP_COLUMNS, id="name")
        out.say(f"{len(found)} to reap" if found else "nothing to reap")
        return
    if not yes:
        Output().rows([asdict(each) for each in found], REAP_COLUMNS[:-1], id="name")
    if not out.confirm(f"terminate {', '.join(each.name for each in found)}?", yes):
        raise typer.Exit(1)
    ended = [reaping.end(engine.teardown, engine.down, each) for each in found]
    out.rows([asdict(each) for each in ended], REAP_COLUMNS, id="name")
    if any(each.outcome not in reaping.SUCCESSES for each in ended):
        raise typer.Exit(1)


def _exec(words: list[str]) -> None:
    """Replace this process by another program, which gets its terminal and its signals."""
    import os
    import shutil

    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]} is not installed here", f"apt-get install {words[0]}")
    os.execvp(words[0], words)  # noqa: S606


def _split(text: str) -> tuple[str | None, str]:
    """The run and the path of ``RUN:PATH``; a local path has no run, and may have a colon after a slash."""
    run, colon, path = text.partition(":")
    if not colon or "/" in run or PurePosixPath(run).name != run:
        return None, text
    return run, path or "."
