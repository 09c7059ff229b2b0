"""A plan: a job, a task and a name, frozen. All that an engine needs to run it, and what ``--dry-run`` prints."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.cloud import job as jobs
from bafogpt.cloud import project, runs
from bafogpt.cloud import task as tasks
from bafogpt.cloud.job import Job
from bafogpt.cloud.reference import Reference
from bafogpt.core.errors import UsageError
from bafogpt.core.settings import Settings

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
) -> Plan:
    """The plan of one launch. Everything that can be wrong with its words is found here, before anything starts.

    Raises :class:`~bafogpt.core.errors.ConfigError` and :class:`~bafogpt.core.errors.UsageError`.
    """
    path = project.job_file(job_name)
    job = jobs.load(path, assignments)
    root = path.resolve().parent.parent
    run = runs.check_name(name or f"{path.stem}-{secrets.token_hex(2)}")
    where = infra or settings.infra
    if image is not None:
        image = str(Reference.parse(image))
        if where == LOCAL:
            raise UsageError(f"--image {image}: a job on this machine runs in no image", "--infra runpod")
    envs = {"BAFOGPT_BUCKET": settings.bucket, "BAFOGPT_INFRA": where, "BAFOGPT_GIT": git_state(root)}
    if settings.s3_region != Settings().s3_region:
        envs["BAFOGPT_S3_REGION"] = settings.s3_region
    if where != LOCAL:
        envs["BAFOGPT_S3_ENDPOINT"] = settings.s3_endpoint
    task = tasks.overlay(
        tasks.load(root / "sky" / f"{job.task}.yaml"),
        name=run,
        job_file=str(path.resolve().relative_to(root)),
        assignments=assignments,
        gpus=gpus,
        infra=where,
        image=image,
        envs=envs,
        secrets=env_names,
    )
    return Plan(name=run, job=job, task=task, infra=where, root=root, required_secrets=tuple(env_names))


def git_state(root: Path) -> str:
    """Commit of the working tree, with ``+dirty`` when it has changes; empty outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return f"{commit}{'+dirty' if git('status', '--porcelain') else ''}" if commit else ""
