"""A plan's task as SkyPilot gets it: with its label, its guard, its code and its secrets."""

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
from bafogpt.jobs import task as task_files
from bafogpt.launch.engines.skypilot.client import LABEL
from bafogpt.launch.plan import Plan

SKYPILOT = Path("~/.sky")
IDLE_MINUTES = 5
"""When a task says nothing about its end."""
RECOVERY = {"strategy": "EAGER_NEXT_REGION", "recover_on_exit_codes": [int(ExitCode.MACHINE_UNFIT)]}
"""Of managed jobs. A machine that is lost or unfit is terminated before another one is rented; FAILOVER would start the
job again on a machine that is still up (SkyPilot 0.14.1, ``jobs/recovery_strategy.py``). SkyPilot does not count these
recoveries: :data:`bafogpt.runs.store.MAX_UNFIT` bounds them."""
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def check_reachable(settings: Settings) -> None:
    """Raise :class:`ConfigError` when the bucket is one that a rented machine cannot see."""
    if settings.bucket.startswith("file://"):
        raise ConfigError(
            f"{settings.bucket} is a folder of this machine; a rented one cannot see it", "--bucket s3://NAME"
        )
    if settings.s3_endpoint == EMBEDDED:
        raise ConfigError(
            "the bucket is this machine's own S3 server; a rented one cannot see it", "--bucket s3://NAME"
        )


def keep_private(folder: Path = SKYPILOT) -> None:
    """Let nobody else on this machine read SkyPilot's files.

    Those of managed jobs hold their secrets, because it rents another machine for them while nobody is there.
    """
    with contextlib.suppress(OSError):  # a folder that is somebody else's is theirs to guard
        folder.expanduser().mkdir(mode=0o700, exist_ok=True)
        folder.expanduser().chmod(0o700)


def rented(plan: Plan, workdir: Path) -> dict[str, Any]:
    """The task of ``plan`` for SkyPilot, with no secret in it."""
    task = task_files.with_recorded_setup(copy.deepcopy(plan.task))
    if "workdir" in task:
        task["workdir"] = str(workdir)
    resources = task.setdefault("resources", {})
    resources["labels"] = {**(resources.get("labels") or {}), LABEL: plan.name}
    if plan.managed:
        resources.pop("autostop", None)  # the controller ends the machines of its jobs itself
        resources.setdefault("job_recovery", dict(RECOVERY))
    task["secrets"] = {}
    return task


def idle_minutes(task: Mapping[str, Any]) -> int:
    """Minutes without a job after which the cluster is to end itself, as the task's ``autostop`` says."""
    said = (task.get("resources") or {}).get("autostop")
    if isinstance(said, Mapping):
        said = said.get("idle_minutes", IDLE_MINUTES)
    if isinstance(said, str) and said.removesuffix("m").isdigit():
        said = int(said.removesuffix("m"))
    if isinstance(said, bool) or not isinstance(said, int) or said < 0:
        return IDLE_MINUTES
    return said


def secrets(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """Names and values of what the task names as secrets, from the environment.

    What ``--env`` names must be there, the keys of an S3 bucket, and what the job's tracking needs; others of the file
    (``HF_TOKEN``) are left out where there is none. Raises :class:`AuthError` naming the first that is missing.
    """
    bucket = str((plan.task.get("envs") or {}).get(env.BUCKET, ""))
    needed = dict.fromkeys(S3_KEYS, bucket) if bucket.startswith("s3://") else {}
    needed |= tracking.required_env(plan.job.tracking)
    found = []
    for name in dict.fromkeys([*(plan.task.get("secrets") or {}), *plan.required_secrets]):
        value = environ.get(name)
        if value:
            found.append((name, value))
        elif name in plan.required_secrets:
            raise AuthError(f"--env {name}: it is not set here", f"export {name}=…")
        elif name in needed:
            raise AuthError(f"{name} is not set, and the job needs it for {needed[name]}", f"export {name}=…")
    return found
