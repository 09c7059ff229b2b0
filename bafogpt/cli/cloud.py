"""``bafogpt cloud``: launch jobs, watch them, stop them. Here on this machine, or where SkyPilot rents one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli import cost, doctor, remote
from bafogpt.cli.console.log_progress import StepFollower, Steps, progress_bar_below
from bafogpt.cli.console.options import (
    BucketOption,
    DetachOption,
    DryRunOption,
    EnvOption,
    FollowOption,
    GpusOption,
    ImageOption,
    InfraOption,
    JobArgument,
    JsonOption,
    NameOption,
    QuietOption,
    RunArgument,
    SetOption,
    YesOption,
)
from bafogpt.cli.console.output import Output
from bafogpt.cli.monitor import tensorboard, top

if TYPE_CHECKING:
    from bafogpt.launch.engines.base import Engine, EngineRun

app = typer.Typer(help="Launch training jobs, watch them, stop them.", no_args_is_help=True)

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run of this --name where it stopped.")]
NodesOption = Annotated[int | None, typer.Option("--nodes", metavar="N", min=1, help="Machines, all alike.")]
SpotOption = Annotated[bool, typer.Option("--spot", help="Cheaper machines that may be taken away; implies --managed.")]
ManagedOption = Annotated[bool, typer.Option("--managed", help="Recover the run on another machine when one is lost.")]
RetryOption = Annotated[bool, typer.Option("--retry-until-up", help="Go on asking while nobody has the machine.")]
CleanOption = Annotated[bool, typer.Option("--clean", help="Refuse to launch code that is not committed.")]
MaxCostOption = Annotated[float | None, typer.Option("--max-cost", metavar="DOLLARS", help="Save and end before that.")]
ProfileOption = Annotated[
    int | None, typer.Option("--profile", metavar="N", min=1, help="Trace N steps, into profile/ of the run.")
]
MaxHoursOption = Annotated[float | None, typer.Option("--max-hours", metavar="HOURS", help="Save and end before that.")]


@app.command()
def launch(
    job: JobArgument,
    name: NameOption = None,
    gpus: GpusOption = None,
    infra: InfraOption = None,
    image: ImageOption = None,
    set_: SetOption = None,
    env: EnvOption = None,
    bucket: BucketOption = None,
    nodes: NodesOption = None,
    spot: SpotOption = False,
    managed: ManagedOption = False,
    retry_until_up: RetryOption = False,
    max_cost: MaxCostOption = None,
    max_hours: MaxHoursOption = None,
    clean: CleanOption = False,
    profile: ProfileOption = None,
    resume: ResumeOption = False,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Launch JOB and watch it. It goes on when you stop watching, close the terminal or switch off."""
    from bafogpt.core import settings
    from bafogpt.core.errors import ExitCode
    from bafogpt.jobs import task as tasks
    from bafogpt.launch.engines import engine_for
    from bafogpt.launch.plan import LaunchOptions
    from bafogpt.launch.plan import make as make_plan
    from bafogpt.launch.quote import ExchangeRate
    from bafogpt.runs.store import MAX_UNFIT

    out = Output.of(json=json, quiet=quiet)
    config = settings.load({"bucket": bucket})
    options = LaunchOptions(
        name=name,
        gpus=gpus,
        infra=infra,
        image=image,
        assignments=[*(set_ or ()), *([f"train.profile={profile}"] if profile else [])],
        env_names=env or (),
        max_cost=max_cost,
        max_hours=max_hours,
        nodes=nodes,
        spot=spot,
        managed=managed,
        retry_until_up=retry_until_up,
        clean=clean,
    )
    plan = make_plan(job, config, options)
    if dry_run:
        if not plan.is_local:
            out.say(f"# {plan.quote.describe(ExchangeRate.of(config))}")
        record = {"name": plan.name, "infra": plan.infra, "price": plan.quote.to_dict(), "task": plan.task}
        out.result(record, tasks.to_yaml(plan.task), plan.name)
        return
    engine = engine_for(plan.infra, config)
    question = f"launch {plan.name} on {plan.infra} at {plan.quote.describe(ExchangeRate.of(config))}?"
    if not plan.is_local and not out.confirm(question, yes):
        raise typer.Exit(1)
    run = engine.launch(plan, resume=resume)
    if detach:
        out.result(
            _record(run), f"{run.name} runs on {run.infra}; watch it: bafogpt cloud logs -f {run.name}", run.name
        )
        return
    out.say(f"{run.name} runs on {run.infra}; Ctrl-C stops watching, not the run")
    ended = _watch(engine, run.name, out, StepFollower(run.name, config))
    for _ in range(MAX_UNFIT - 1):
        if plan.is_local or ended.managed or ended.exit_code != ExitCode.MACHINE_UNFIT:
            break
        out.say(f"the machine of {run.name} cannot run it and is given back; another one is rented")
        engine.down(run.name)
        engine.launch(plan, resume=True)
        ended = _watch(engine, run.name, out, StepFollower(run.name, config))
    _conclude(ended, out)


def _shortcut(job: str) -> Callable[..., None]:
    """``cloud JOB`` for ``cloud launch JOB``, with the same options."""

    def command(**options: object) -> None:
        launch(job, **options)  # type: ignore[arg-type]

    signature = inspect.signature(launch, eval_str=True)  # Typer reads a signature that is set as it is
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each for each in signature.parameters.values() if each.name != "job"]
    )
    command.__annotations__ = {key: kind for key, kind in launch.__annotations__.items() if key != "job"}
    command.__doc__ = f"Short for: bafogpt cloud launch {job}"
    return command


for _job in ("pretrain", "finetune"):
    app.command(_job)(_shortcut(_job))


@app.command()
def ls(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the runs on this machine and on rented ones."""
    from bafogpt.core import settings
    from bafogpt.launch.engines import everywhere

    out = Output.of(json=json, quiet=quiet)
    runs = [run for engine in everywhere(settings.load()) for run in engine.runs()]
    if not runs:
        out.say("no runs; start one: bafogpt cloud launch demo")
    out.rows(
        [_record(run) for run in runs],
        columns={
            **{key: key for key in ("name", "infra", "state", "started", "location")},
            "price_per_hour": "$/hour",
        },
        id="name",
    )


@app.command()
def status(run: RunArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Say how a run is: its engine's word, and how far its record in the bucket is."""
    from bafogpt.core import settings
    from bafogpt.runs.store import RunStore
    from bafogpt.storage.bucket import Bucket

    config = settings.load()
    found = _engine(run).status(run)
    record = RunStore(Bucket.open(config.bucket, config)).find(run)
    more = {"step": record.step, "steps": record.steps, "message": record.message} if record else {}
    Output.of(json=json, quiet=quiet).result({**_record(found), **more}, id=found.state)


@app.command()
def logs(run: RunArgument, follow: FollowOption = False, json: JsonOption = False) -> None:
    """Print what a run has printed."""
    from bafogpt.core import settings
    from bafogpt.launch.engines import engine_of

    out, config = Output.of(json=json), settings.load()
    steps = StepFollower(run, config)
    with progress_bar_below(out, sys.stdout, lambda line: out.event({"line": line}, line), steps, follow) as show:
        for line in engine_of(run, config).logs(run, follow=follow):
            show(line)


app.command()(top)
app.command()(tensorboard)


@app.command()
def cancel(run: RunArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Ask a run to save, drain and end, and wait until it has. It can be launched again with --resume."""
    out = Output.of(json=json, quiet=quiet)
    out.say(f"{run} saves its state and ends")
    ended = _engine(run).cancel(run)
    out.result(_record(ended), f"{run}: {ended.state}", run)


@app.command()
def down(run: RunArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """End a run if it is active, and give back everything but what is in the bucket."""
    _engine(run).down(run)
    Output.of(json=json, quiet=quiet).result(
        {"name": run, "state": "down"}, f"{run} is down; its record stays: bafogpt runs show {run}", run
    )


remote.add_to(app)


def _watch(engine: Engine, name: str, out: Output, steps: Steps) -> EngineRun:
    """Show a run's log until it ends. Returns its final state."""
    with progress_bar_below(out, sys.stderr, out.say, steps) as show:
        for line in engine.logs(name, follow=True):
            if not out.json:
                show(line)
    return engine.status(name)


def _conclude(ended: EngineRun, out: Output) -> None:
    """End as the run did. Raises :class:`JobCancelledError` and :class:`JobFailedError`."""
    from bafogpt.core.errors import JobCancelledError, JobFailedError

    name = ended.name
    if ended.state == "stopped":
        raise JobCancelledError(f"{name} was stopped", f"bafogpt cloud launch JOB --name {name} --resume")
    if ended.state != "succeeded":
        code = f" with exit code {ended.exit_code}" if ended.exit_code is not None else ""
        raise JobFailedError(f"{name} {ended.state}{code}", f"bafogpt cloud logs {name}")
    out.result(_record(ended), f"{name} succeeded; see it: bafogpt runs show {name}", name)


def _engine(run: str) -> Engine:
    """The engine that holds a run."""
    from bafogpt.core import settings
    from bafogpt.launch.engines import engine_of

    return engine_of(run, settings.load())


def _record(run: EngineRun) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(run)


cost.register(app)
doctor.register(app)
