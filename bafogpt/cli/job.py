"""``bafogpt job``: the commands that a launched machine runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import JobArgument, SetOption

if TYPE_CHECKING:
    from pathlib import Path

    from bafogpt.core.settings import Settings
    from bafogpt.jobs.job import Job

app = App(help="Commands that tasks run on a launched machine.", no_args_is_help=True)


RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        envvar="BAFOGPT_RUN",
        metavar="NAME",
        help="Name of the run. Default: from the job's name and SkyPilot's task ID.",
    ),
]


@app.command()
def run(job: JobArgument, run: RunOption = None, set_: SetOption = None) -> None:
    """Train JOB on this machine and upload its checkpoints, until the run ends. Every task in sky/ runs this."""
    from bafogpt.agent import claim, supervisor
    from bafogpt.agent.multinode import heartbeat
    from bafogpt.core import settings
    from bafogpt.core.errors import BafoError
    from bafogpt.storage.bucket import Bucket

    nodes = heartbeat.Nodes.from_environment()
    config = settings.load()
    resolved, name, folder = _found(job, run, set_, config)
    ending = supervisor.supervise(
        resolved,
        name,
        Bucket.open(config.bucket, config),
        folder.with_name(f"{name}.node-{nodes.rank}") if nodes.rank else folder,  # nodes may share a home
        claim.LaunchInfo.from_environment(),
        nodes=nodes,
    )
    if ending.state != "succeeded":
        error = BafoError(ending.message, ending.hint)
        error.exit_code = ending.exit_code
        raise error


@app.command()
def setup(
    job: JobArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Command that sets up the machine.")],
    run: RunOption = None,
    set_: SetOption = None,
) -> None:
    """Run COMMAND to set up this machine for JOB; if it fails, record its output as the run's log."""
    from bafogpt.agent import claim
    from bafogpt.agent import setup as preparation
    from bafogpt.core import settings
    from bafogpt.storage.bucket import Bucket

    config = settings.load()
    resolved, name, folder = _found(job, run, set_, config)
    code = preparation.prepare(
        resolved, name, Bucket.open(config.bucket, config), folder, claim.LaunchInfo.from_environment(), command
    )
    if code:
        raise typer.Exit(code)


def _found(job: str, run: str | None, assignments: list[str] | None, config: Settings) -> tuple[Job, str, Path]:
    """The resolved job, the run's name, and its folder on this machine."""
    from bafogpt.agent import claim
    from bafogpt.jobs import resolve
    from bafogpt.launch.engines.local import work_folder
    from bafogpt.runs import store

    source = resolve.find(job, config, assignments or ())
    name = store.check_name(run or claim.name_from_environment(source.name_stem))
    return source.job, name, work_folder(config, name)
