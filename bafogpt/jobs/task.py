"""A task file: where a job runs. Every ``sky/*.yaml`` is a SkyPilot task that plain ``sky launch`` accepts.

A launch lays its flags on the file; the result is again such a task, and what ``--dry-run`` prints. SkyPilot itself is
not needed for any of this.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, UsageError
from bafogpt.jobs import env
from bafogpt.jobs.image_ref import PREFIX

NO_IMAGE = "none"
"""In place of an image: the task runs on the machine as it is, which has ``bafogpt`` on its PATH (a Slurm site)."""

_GPUS = re.compile(r"([A-Za-z][A-Za-z0-9-]*)(?::([1-9][0-9]*))?")
_SUPERVISOR = re.compile(r"^(?:exec )?bafogpt job run\b.*$", re.MULTILINE)


def load(path: Path) -> dict[str, Any]:
    """The task in a file. Raises :class:`ConfigError` unless its ``run:`` starts the supervisor."""
    task = schema.load_yaml(path)
    if not _SUPERVISOR.search(str(task.get("run", ""))):
        raise ConfigError(f"{path}: 'run' does not start the supervisor", "run: exec bafogpt job run jobs/NAME.yaml")
    return task


def parse_gpus(text: str) -> tuple[str, int]:
    """``"L40:4"`` as ``("L40", 4)``. Raises :class:`UsageError`."""
    match = _GPUS.fullmatch(text)
    if not match:
        raise UsageError(f"--gpus {text}: not NAME or NAME:COUNT", "--gpus L40:4")
    return match[1], int(match[2] or 1)


def overlay(
    task: Mapping[str, Any],
    *,
    name: str,
    job_file: str,
    assignments: Sequence[str] = (),
    gpus: str | None = None,
    infra: str | None = None,
    image: str | None = None,
    envs: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    nodes: int | None = None,
    spot: bool = False,
) -> dict[str, Any]:
    """The task with a launch's flags laid on it. Secrets appear by name with no value.

    ``image`` is a reference that takes the place of the file's, or :data:`NO_IMAGE`. Whatever image the task then has
    on a rented machine is told to it as ``BAFOGPT_IMAGE``, for the run's record; ``local`` runs in no image.
    """
    words = ["exec", "bafogpt", "job", "run", job_file, "--run", name]
    for assignment in assignments:
        words += ["--set", assignment]
    run = _SUPERVISOR.sub(lambda _: shlex.join(words), str(task["run"]))
    over: dict[str, Any] = {"name": name, "run": run, "envs": dict(envs or {})}
    resources: dict[str, Any] = {}
    if gpus is not None:
        kind, count = parse_gpus(gpus)
        resources["accelerators"] = f"{kind}:{count}"
        if (memory := _memory_for(task, count)) is not None:
            resources["memory"] = memory
    if infra is not None and infra != "local":
        resources["infra"] = infra
    if image is not None:
        resources["image_id"] = f"{PREFIX}{image}" if image != NO_IMAGE else None
    if spot:
        resources["use_spot"] = True
    if nodes is not None:
        over["num_nodes"] = nodes
    if resources:
        over["resources"] = resources
    merged = schema.merge(task, over)
    named = {**(task.get("secrets") or {}), **dict.fromkeys(secrets)}
    if named:
        merged["secrets"] = named
    if image == NO_IMAGE:
        merged["resources"].pop("image_id", None)
    final = image_id(merged)
    if final is not None and infra != "local":
        merged["envs"] = {**merged["envs"], env.IMAGE: final}
    return merged


def with_recorded_setup(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task with its ``setup:``, if it has one, under ``bafogpt job setup``: a failure is in the bucket then.

    On a machine that has no ``bafogpt`` yet (the setup may bring it) it runs as it is.
    """
    supervisor = _SUPERVISOR.search(str(task.get("run", "")))
    if not task.get("setup") or supervisor is None:
        return dict(task)
    recorded = supervisor[0].removeprefix("exec ").replace("bafogpt job run", "bafogpt job setup", 1)
    script = shlex.join(["bash", "-c", str(task["setup"])])
    setup = f"if command -v bafogpt >/dev/null; then\n{recorded} -- {script}\nelse\n{script}\nfi\n"
    return {**task, "setup": setup}


def image_id(task: Mapping[str, Any]) -> str | None:
    """The image that a task runs in, as SkyPilot names it; None where it names none, or one of several."""
    resources = task.get("resources") or {}
    choices = [resources, *(resources.get("any_of") or ()), *(resources.get("ordered") or ())]
    found: set[str] = set()
    for each in (choice.get("image_id") for choice in choices):
        found |= set(map(str, each.values())) if isinstance(each, Mapping) else {str(each)} if each else set()
    return found.pop() if len(found) == 1 else None


def accelerators(task: Mapping[str, Any]) -> tuple[str, int] | None:
    """The GPU and count that a task asks for, or None."""
    asked = (task.get("resources") or {}).get("accelerators")
    if isinstance(asked, Mapping):
        kind, count = next(iter(asked.items()))
        return str(kind), int(count)
    return parse_gpus(str(asked)) if asked else None


def _memory_for(task: Mapping[str, Any], count: int) -> str | None:
    """The task's ``memory`` ("96+", GiB of the machine) for more GPUs than it names: each has a process of its own.

    Not less for fewer: they hold the same checkpoint. None where the task names no such memory or no single GPU.
    """
    resources = task.get("resources") or {}
    asked, gpus = str(resources.get("memory") or "").removesuffix("+"), resources.get("accelerators")
    if not asked.isdigit() or not (isinstance(gpus, str) and _GPUS.fullmatch(gpus)):
        return None
    return f"{max(int(asked), -(-int(asked) * count // parse_gpus(gpus)[1]))}+"


def to_yaml(task: Mapping[str, Any]) -> str:
    """The task as YAML, keys in the order in which a reader wants them, multi-line commands as blocks."""
    return yaml.dump(dict(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text as a block."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
