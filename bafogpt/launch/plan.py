"""A plan: a job, a task and a name, frozen. All that an engine needs to run it, and what ``--dry-run`` prints."""

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
from bafogpt.jobs.image_ref import Reference
from bafogpt.jobs.job import Job
from bafogpt.launch import code_snapshot, quote
from bafogpt.launch.quote import Quote
from bafogpt.runs import store

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run, under which name, where."""

    name: str
    job: Job
    task: dict[str, Any]
    """A SkyPilot task; secrets by name only."""
    infra: str
    root: Path
    """The folder that is the job's working directory."""
    required_secrets: tuple[str, ...] = ()
    """Variables that the launch names with ``--env``: without a value there is no launch."""
    managed: bool = False
    """Whether SkyPilot's jobs controller recovers it on another machine when one is lost."""
    retry_until_up: bool = False
    """Whether to go on asking while nobody has the machine."""
    bill: Quote = field(default_factory=lambda: Quote(usd_per_hour=None, source="not asked"))
    """What it costs an hour and in all, and its limits; the job is told them too."""

    @property
    def is_local(self) -> bool:
        return self.infra == LOCAL


def make(
    job_name: str,
    settings: Settings,
    *,
    name: str | None = None,
    gpus: str | None = None,
    infra: str | None = None,
    image: str | None = None,
    assignments: Sequence[str] = (),
    env_names: Sequence[str] = (),
    max_cost: float | None = None,
    max_hours: float | None = None,
    nodes: int | None = None,
    spot: bool = False,
    managed: bool = False,
    retry_until_up: bool = False,
    clean: bool = False,
) -> Plan:
    """The plan of one launch. Everything that can be wrong with its words is found here, before anything starts.

    ``max_cost`` (dollars) and ``max_hours`` come before those of the job's ``supervisor:`` section. Raises
    :class:`~bafogpt.core.errors.ConfigError`, :class:`~bafogpt.core.errors.UsageError`, and
    :class:`~bafogpt.core.errors.NotFoundError` for a GPU that nobody offers.
    """
    source = resolve.find(job_name, settings, assignments)
    job, root = source.job, source.root
    run = store.check_name(name or f"{source.stem}-{secrets.token_hex(2)}")
    where = infra or settings.infra
    if image is not None:
        image = image if image == tasks.NO_IMAGE else str(Reference.parse(image))
        if where == LOCAL:
            raise UsageError(f"--image {image}: a job on this machine runs in no image", "--infra runpod")
    if where == LOCAL:
        rented = {"--spot": spot, "--managed": managed, "--nodes": (nodes or 1) > 1, "--retry-until-up": retry_until_up}
        for flag in (flag for flag, given in rented.items() if given):
            raise UsageError(f"{flag}: a job on this machine rents nothing", "--infra runpod")
        tracking.require(job.tracking)
    else:
        tracking.check_reachable(job.tracking)
    if clean:
        code_snapshot.require_clean(root)
    envs = {env.BUCKET: settings.bucket, env.INFRA: where, env.GIT: str(code_snapshot.look(root))}
    if settings.s3_region != Settings().s3_region:
        envs[env.S3_REGION] = settings.s3_region
    if where != LOCAL:
        envs[env.S3_ENDPOINT] = settings.s3_endpoint
    task = tasks.overlay(
        tasks.load(root / "sky" / f"{job.task}.yaml"),
        name=run,
        job_file=source.word,
        assignments=assignments,
        gpus=gpus,
        infra=where,
        image=image,
        envs=envs,
        secrets=[*env_names, *tracking.variables(job.tracking)],
        nodes=nodes,
        spot=spot,
    )
    asked = tasks.accelerators(task)
    if asked and (gpus or where != LOCAL):
        task["envs"][env.GPUS] = f"{asked[0]}:{asked[1]}"
    keeps = job.supervisor
    bill = quote.bill(
        job,
        task,
        where,
        max_cost=keeps.max_cost if max_cost is None else max_cost,
        max_hours=keeps.max_hours if max_hours is None else max_hours,
    )
    told = {"envs": bill.envs(), **({"resources": bill.resources()} if bill.resources() else {})}
    return Plan(
        name=run,
        job=job,
        task=schema.merge(task, told),
        infra=where,
        root=root,
        required_secrets=tuple(env_names),
        managed=managed or spot,
        retry_until_up=retry_until_up,
        bill=bill,
    )
