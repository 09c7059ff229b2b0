"""``bafogpt cloud``: launch jobs, watch them, stop them, on this machine or on machines that SkyPilot rents."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli import cost, doctor, monitor, remote
from bafogpt.cli.console.access import engine_of, run_store
from bafogpt.cli.console.app import App
from bafogpt.cli.console.log_progress import StepFollower, Steps, progress_bar_below
from bafogpt.cli.console.options import JobArgument, JsonOption, LaunchFlags, RunArgument
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.launch.engines.base import Engine, EngineRun
    from bafogpt.launch.plan import Plan

app = App(help="Launch training jobs, watch them, stop them.", no_args_is_help=True)

LS_COLUMNS = {key: key for key in ("name", "infra", "state", "started", "location")} | {"price_per_hour": "$/hour"}


@app.command()
def launch(
    job: JobArgument,
    flags: LaunchFlags,
    out: Output,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run --name from its last checkpoint.")] = False,
) -> None:
    """Launch JOB and follow its log. The run continues if you press Ctrl-C or close the terminal."""
    from bafogpt.core import settings
    from bafogpt.launch.engines import engine_for
    from bafogpt.launch.plan import make as make_plan
    from bafogpt.launch.quote import ExchangeRate

    config = settings.load({"bucket": flags.bucket})
    plan = make_plan(job, config, flags.for_plan())
    price = plan.quote.describe(ExchangeRate.of(config))
    if flags.dry_run:
        _print_plan(plan, price, out)
        return
    engine = engine_for(plan.infra, config)
    question = f"launch {plan.name} on {plan.infra} at {price}?"
    if not plan.is_local and not out.confirm(question, flags.yes):
        raise typer.Exit(1)
    run = engine.launch(plan, resume=resume)
    if flags.detach:
        text = f"{run.name} runs on {run.infra}; watch it: bafogpt cloud logs -f {run.name}"
        out.result(asdict(run), text, run.name)
        return
    out.say(f"{run.name} runs on {run.infra}; Ctrl-C stops watching, not the run")
    _conclude(_watch_plan(engine, plan, config, out), out)


for _job in ("pretrain", "finetune"):
    app.command(_job, help=f"Short for: bafogpt cloud launch {_job}")(functools.partial(launch, _job))


@app.command()
def ls(out: Output) -> None:
    """List the runs on this machine and on rented ones."""
    from bafogpt.core import settings
    from bafogpt.launch.engines import everywhere

    runs = [run for engine in everywhere(settings.load()) for run in engine.runs()]
    if not runs:
        out.say("no runs; start one: bafogpt cloud launch demo")
    out.rows([asdict(run) for run in runs], columns=LS_COLUMNS, id="name")


@app.command()
def status(run: RunArgument, out: Output) -> None:
    """Show a run's state and progress."""
    found = engine_of(run).status(run)
    record = run_store().find(run)
    progress = {"step": record.step, "steps": record.steps, "message": record.message} if record else {}
    out.result({**asdict(found), **progress}, id=found.state)


@app.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Print a run's log, from its machine while that is up, else from the bucket."""
    from bafogpt.core import settings

    out = Output(json=json)
    steps = StepFollower(run, settings.load())
    with progress_bar_below(out, sys.stdout, lambda line: out.event({"line": line}, line), steps, follow) as show:
        for line in engine_of(run).logs(run, follow=follow):
            show(line)


app.command()(monitor.top)
app.command()(monitor.tensorboard)


@app.command()
def cancel(run: RunArgument, out: Output) -> None:
    """Stop a run with a checkpoint, and wait until it has stopped. Resume it with 'launch --resume'."""
    out.say(f"{run} writes a checkpoint and stops")
    ended = engine_of(run).cancel(run)
    out.result(asdict(ended), f"{run}: {ended.state}", run)


@app.command()
def down(run: RunArgument, out: Output) -> None:
    """Stop a run with a checkpoint and release its machines. Its records and checkpoints stay in the bucket."""
    engine_of(run).down(run)
    out.result({"name": run, "state": "down"}, f"{run} is down; its record is kept: bafogpt runs show {run}", run)


for _command in (remote.ssh, remote.cp, remote.port_forward, remote.queue, remote.reap, cost.plan, cost.cost):
    app.command()(_command)
app.command("exec")(remote.exec_)
app.command()(doctor.doctor)


def _print_plan(plan: Plan, price: str, out: Output) -> None:
    from bafogpt.jobs import task as tasks

    if not plan.is_local:
        out.say(f"# {price}")
    record = {"name": plan.name, "infra": plan.infra, "price": plan.quote.to_dict(), "task": plan.task}
    out.result(record, tasks.to_yaml(plan.task), plan.name)


def _watch_plan(engine: Engine, plan: Plan, config: Settings, out: Output) -> EngineRun:
    """Watch a launched plan until it ends, on another machine if its machine cannot run it. Returns its final state."""
    from bafogpt.core.errors import ExitCode
    from bafogpt.runs.store import MAX_UNFIT

    ended = _watch(engine, plan.name, out, StepFollower(plan.name, config))
    for _ in range(MAX_UNFIT - 1):
        if plan.is_local or ended.managed or ended.exit_code != ExitCode.MACHINE_UNFIT:
            break
        out.say(f"the machine of {plan.name} cannot run it and is released; renting another one")
        engine.down(plan.name)
        engine.launch(plan, resume=True)
        ended = _watch(engine, plan.name, out, StepFollower(plan.name, config))
    return ended


def _watch(engine: Engine, name: str, out: Output, steps: Steps) -> EngineRun:
    """Show a run's log until it ends. Returns its final state."""
    with progress_bar_below(out, sys.stderr, out.say, steps) as show:
        for line in engine.logs(name, follow=True):
            if not out.json:
                show(line)
    return engine.status(name)


def _conclude(ended: EngineRun, out: Output) -> None:
    """Print the final state.

    Raises :class:`~bafogpt.core.errors.JobCancelledError` or :class:`~bafogpt.core.errors.JobFailedError` unless the
    run succeeded.
    """
    from bafogpt.core.errors import JobCancelledError, JobFailedError

    name = ended.name
    if ended.state == "stopped":
        raise JobCancelledError(f"{name} was stopped", f"bafogpt cloud launch JOB --name {name} --resume")
    if ended.state != "succeeded":
        code = f" with exit code {ended.exit_code}" if ended.exit_code is not None else ""
        raise JobFailedError(f"{name} {ended.state}{code}", f"bafogpt cloud logs {name}")
    out.result(asdict(ended), f"{name} succeeded; see it: bafogpt runs show {name}", name)
