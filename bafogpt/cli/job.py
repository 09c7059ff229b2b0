"""``bafogpt job``: what a launched machine runs."""

from __future__ import annotations

from pathlib import Path
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
    import os

    from bafogpt.cloud import claim, project, runs, supervisor
    from bafogpt.cloud import job as jobs
    from bafogpt.cloud.engines.local import work_folder
    from bafogpt.core import settings
    from bafogpt.core.errors import BafoError, UsageError
    from bafogpt.storage.bucket import Bucket

    if int(os.environ.get("SKYPILOT_NUM_NODES", "1")) > 1:
        raise UsageError("a job on more than one node is not in this version of bafogpt", "num_nodes: 1")
    config = settings.load()
    path: Path = project.job_file(job)
    name = runs.check_name(run or claim.name_from_environment(path.stem))
    ending = supervisor.supervise(
        jobs.load(path, set_ or ()),
        name,
        Bucket.open(config.bucket, config),
        work_folder(config, name),
        claim.Place.from_environment(),
    )
    if ending.state != "succeeded":
        error = BafoError(ending.message, ending.hint)
        error.exit_code = ending.exit_code
        raise error
