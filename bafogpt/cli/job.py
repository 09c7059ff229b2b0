"""``bafogpt job``: what a launched machine runs."""

from __future__ import annotations

from typing import Annotated

import typer

from bafogpt.cli.options import JobArgument, SetOption

app = typer.Typer(help="What a launched machine runs: the supervisor and its trainers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What a launched machine runs: the supervisor and its trainers."""


@app.command()
def run(
    job: JobArgument,
    run: Annotated[
        str | None,
        typer.Option("--run", envvar="BAFOGPT_RUN", metavar="NAME", help="The run's name. Default: from SkyPilot's."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Supervise JOB on this machine until it is done: the command of every task in sky/."""
    from bafogpt.cloud import claim, crew, recorded, runs, supervisor
    from bafogpt.cloud.engines.local import work_folder
    from bafogpt.core import settings
    from bafogpt.core.errors import BafoError
    from bafogpt.storage.bucket import Bucket

    nodes = crew.Nodes.from_environment()
    config = settings.load()
    source = recorded.find(job, config, set_ or ())
    name = runs.check_name(run or claim.name_from_environment(source.stem))
    folder = work_folder(config, name)
    ending = supervisor.supervise(
        source.job,
        name,
        Bucket.open(config.bucket, config),
        folder.with_name(f"{name}.node-{nodes.rank}") if nodes.rank else folder,  # nodes may share a home
        claim.Place.from_environment(),
        nodes=nodes,
    )
    if ending.state != "succeeded":
        error = BafoError(ending.message, ending.hint)
        error.exit_code = ending.exit_code
        raise error
