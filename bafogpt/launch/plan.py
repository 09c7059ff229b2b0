"""A plan: a job, a task and a name, frozen: the input of an engine and the output of ``--dry-run``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bafogpt.core import schema
from bafogpt.core.errors import UsageError
from bafogpt.core.settings import Settings
from bafogpt.jobs import env, resolve, tracking
from bafogpt.jobs import task as tasks
from bafogpt.jobs.job import Job
from bafogpt.launch import code_snapshot, quote
from bafogpt.launch.quote import Quote
from bafogpt.runs import store

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The options of ``cloud launch`` that shape a plan; None is the value of the job, the task or the settings."""

    name: str | None = None
    gpus: str | None = None
    infra: str | None = None
    image: str | None = None
    assignments: Sequence[str] = ()
    env_names: Sequence[str] = ()
    max_cost: float | None = None
    max_hours: float | None = None
    nodes: int | None = None
    spot: bool = False
    managed: bool = False
    retry_until_up: bool = False
    clean: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs, under which name, where."""

    name: str
    job: Job
    task: dict[str, Any]
    """A SkyPilot task; secrets by name only."""
    infra: str
    root: Path
    """The job's working directory."""
    required_secrets: tuple[str, ...] = ()
    """Variables of ``--env``; the launch fails without their values."""
    managed: bool = False
    """Whether SkyPilot's jobs controller recovers the run on another machine."""
    retry_until_up: bool = False
    """Whether to retry while there is no capacity."""
    quote: Quote = field(default_factory=lambda: Quote(usd_per_hour=None, source="none"))
    """Price and limits; both are also in the task's variables."""

    @property
    def is_local(self) -> bool:
        return self.infra == LOCAL


def make(job_name: str, settings: Settings, options: LaunchOptions | None = None) -> Plan:
    """The plan of one launch. Every mistake in its options is found here, before anything starts.

    Raises :class:`~bafogpt.core.errors.ConfigError`, :class:`~bafogpt.core.errors.UsageError`, and
    :class:`~bafogpt.core.errors.NotFoundError` for a GPU that no cloud offers.
    """
    options = options or LaunchOptions()
    source = resolve.find(job_name, settings, options.assignments)
    job, infra = source.job, options.infra or settings.infra
    name = store.check_name(options.name or f"{source.name_stem}-{secrets.token_hex(2)}")
    _check_options(options, infra, job, source.root)
    task = tasks.with_options(
        tasks.load(source.root / "sky" / f"{job.task}.yaml"),
        name=name,
        job_file=source.argument,
        assignments=options.assignments,
        gpus=options.gpus,
        infra=infra,
        image=options.image,
        envs=_envs(settings, infra, source.root),
        secrets=[*options.env_names, *tracking.variables(job.tracking)],
        nodes=options.nodes,
        spot=options.spot,
    )
    gpus = tasks.accelerators(task)
    if gpus and (options.gpus or infra != LOCAL):
        task["envs"][env.GPUS] = f"{gpus[0]}:{gpus[1]}"
    price = quote.compute(job, task, infra, max_cost=options.max_cost, max_hours=options.max_hours)
    return Plan(
        name=name,
        job=job,
        task=schema.merge(task, price.task_options()),
        infra=infra,
        root=source.root,
        required_secrets=tuple(options.env_names),
        managed=options.managed or options.spot,
        retry_until_up=options.retry_until_up,
        quote=price,
    )


def _check_options(options: LaunchOptions, infra: str, job: Job, root: Path) -> None:
    """Raise :class:`UsageError` for options that do not fit together, and what the job's tracking lacks."""
    if infra == LOCAL:
        if options.image is not None:
            raise UsageError(
                f"--image {options.image}: a job on this machine runs without a container", "--infra runpod"
            )
        rented_only = {
            "--spot": options.spot,
            "--managed": options.managed,
            "--nodes": (options.nodes or 1) > 1,
            "--retry-until-up": options.retry_until_up,
        }
        if flag := next((flag for flag, given in rented_only.items() if given), None):
            raise UsageError(f"{flag}: for rented machines only", "--infra runpod")
        tracking.require_packages(job.tracking)
    else:
        tracking.check_reachable(job.tracking)
    if options.clean:
        code_snapshot.require_clean(root)


def _envs(settings: Settings, infra: str, root: Path) -> dict[str, str]:
    """The task's variables for bucket, infra and code."""
    envs = {env.BUCKET: settings.bucket, env.INFRA: infra, env.GIT: str(code_snapshot.current_version(root))}
    if settings.s3_region != Settings().s3_region:
        envs[env.S3_REGION] = settings.s3_region
    if infra != LOCAL:
        envs[env.S3_ENDPOINT] = settings.s3_endpoint
    return envs
