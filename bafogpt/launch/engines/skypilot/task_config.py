"""A plan's task as SkyPilot gets it: with label, autodown, code and secrets."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bafogpt.core.errors import AuthError, ConfigError, ExitCode
from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.jobs import env, tracking
from bafogpt.jobs import task as tasks
from bafogpt.launch.engines.skypilot.client import LABEL
from bafogpt.launch.plan import Plan

SKYPILOT_HOME = Path("~/.sky")
IDLE_MINUTES = 5
"""Autodown of a task without its own."""
RECOVERY = {"strategy": "EAGER_NEXT_REGION", "recover_on_exit_codes": [int(ExitCode.MACHINE_UNFIT)]}
"""Of managed jobs. A lost or unfit machine is terminated before another is rented; FAILOVER would restart the job on a
machine that is still up (SkyPilot 0.14.1, ``jobs/recovery_strategy.py``). SkyPilot does not count these recoveries:
:data:`bafogpt.runs.store.MAX_UNFIT` limits them."""
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def check_reachable(settings: Settings) -> None:
    """Raise :class:`ConfigError` for a bucket that a rented machine cannot reach."""
    local = ""
    if settings.bucket.startswith("file://"):
        local = f"{settings.bucket} is a folder on this machine"
    elif settings.s3_endpoint == EMBEDDED:
        local = "the bucket is on this machine's embedded S3 server"
    if local:
        raise ConfigError(f"{local}; a rented machine cannot reach it", "--bucket s3://NAME")


def make_private(folder: Path = SKYPILOT_HOME) -> None:
    """Make SkyPilot's files readable by this user alone; those of managed jobs hold their secrets, for recoveries."""
    with contextlib.suppress(OSError):  # not our folder
        folder.expanduser().mkdir(mode=0o700, exist_ok=True)
        folder.expanduser().chmod(0o700)


def rented(plan: Plan, workdir: Path) -> dict[str, Any]:
    """The task of ``plan`` for SkyPilot, without any secret."""
    task = tasks.with_recorded_setup(copy.deepcopy(plan.task))
    if "workdir" in task:
        task["workdir"] = str(workdir)
    resources = task.setdefault("resources", {})
    resources["labels"] = {**(resources.get("labels") or {}), LABEL: plan.name}
    if plan.managed:
        resources.pop("autostop", None)  # the jobs controller terminates its machines itself
        resources.setdefault("job_recovery", dict(RECOVERY))
    task["secrets"] = {}
    return task


def idle_minutes(task: Mapping[str, Any]) -> int:
    """Minutes without a job after which the cluster terminates itself, by the task's ``autostop``."""
    value = (task.get("resources") or {}).get("autostop")
    if isinstance(value, Mapping):
        value = value.get("idle_minutes", IDLE_MINUTES)
    if isinstance(value, str) and value.removesuffix("m").isdigit():
        value = int(value.removesuffix("m"))
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else IDLE_MINUTES


def secrets(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """Names and values of the task's secrets, from the environment.

    Required are those of ``--env``, the keys of an S3 bucket, and what the job's tracking needs; others (``HF_TOKEN``)
    are left out where they are not set. Raises :class:`AuthError` naming the first that is missing.
    """
    bucket = str((plan.task.get("envs") or {}).get(env.BUCKET, ""))
    needed = dict.fromkeys(S3_KEYS, bucket) if bucket.startswith("s3://") else {}
    needed |= tracking.required_env(plan.job.tracking)
    values = []
    for name in dict.fromkeys([*(plan.task.get("secrets") or {}), *plan.required_secrets]):
        value = environ.get(name)
        if value:
            values.append((name, value))
        elif name in plan.required_secrets:
            raise AuthError(f"--env {name}: it is not set here", f"export {name}=…")
        elif name in needed:
            raise AuthError(f"{name} is not set, and the job needs it for {needed[name]}", f"export {name}=…")
    return values
