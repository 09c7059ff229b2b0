"""A task file: where a job runs. Every ``sky/*.yaml`` is a SkyPilot task that plain ``sky launch`` accepts.

A launch applies its options to the file; the result is again such a task, and is what ``--dry-run`` prints. SkyPilot
itself is not needed here.
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
from bafogpt.jobs.image_ref import PREFIX, ImageReference

NO_IMAGE = "none"
"""``--image none``: the task runs without a container, where ``bafogpt`` is on the PATH (a Slurm site)."""

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


def with_options(
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
    """The task with a launch's options applied. Secrets are names without values.

    ``image`` is a reference, or :data:`NO_IMAGE`. A rented machine gets the final image as
    :data:`bafogpt.jobs.env.IMAGE`, for the run's record; ``local`` runs without a container.
    """
    words = ["exec", "bafogpt", "job", "run", job_file, "--run", name]
    words += [word for each in assignments for word in ("--set", each)]
    changes: dict[str, Any] = {
        "name": name,
        "run": _SUPERVISOR.sub(lambda _: shlex.join(words), str(task["run"])),
        "envs": dict(envs or {}),
        "resources": _resource_options(task, gpus, infra, image, spot),
        "secrets": dict.fromkeys(secrets),
        "num_nodes": nodes,
    }
    merged = schema.merge(task, {key: value for key, value in changes.items() if key == "envs" or value})
    if image == NO_IMAGE:
        del merged["resources"]["image_id"]
    if infra != "local" and (final := image_id(merged)) is not None:
        merged["envs"] = {**merged["envs"], env.IMAGE: final}
    return merged


def _resource_options(
    task: Mapping[str, Any], gpus: str | None, infra: str | None, image: str | None, spot: bool
) -> dict[str, Any]:
    """A launch's options as keys of ``resources:``."""
    resources: dict[str, Any] = {"use_spot": True} if spot else {}
    if gpus is not None:
        kind, count = parse_gpus(gpus)
        resources["accelerators"] = f"{kind}:{count}"
        if (memory := _memory_for(task, count)) is not None:
            resources["memory"] = memory
    if infra not in (None, "local"):
        resources["infra"] = infra
    if image is not None:
        resources["image_id"] = None if image == NO_IMAGE else f"{PREFIX}{ImageReference.parse(image)}"
    return resources


def with_recorded_setup(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task with its ``setup:``, if it has one, run by ``bafogpt job setup``, which records a failure in the bucket.

    On a machine without ``bafogpt`` (the setup may install it) it runs unchanged.
    """
    supervisor = _SUPERVISOR.search(str(task.get("run", "")))
    if not task.get("setup") or supervisor is None:
        return dict(task)
    recorded = supervisor[0].removeprefix("exec ").replace("bafogpt job run", "bafogpt job setup", 1)
    script = shlex.join(["bash", "-c", str(task["setup"])])
    setup = f"if command -v bafogpt >/dev/null; then\n{recorded} -- {script}\nelse\n{script}\nfi\n"
    return {**task, "setup": setup}


def image_id(task: Mapping[str, Any]) -> str | None:
    """The image of a task, as SkyPilot's ``image_id``; None for none or several."""
    resources = task.get("resources") or {}
    choices = [resources, *(resources.get("any_of") or ()), *(resources.get("ordered") or ())]
    found: set[str] = set()
    for each in (choice.get("image_id") for choice in choices):
        found |= set(map(str, each.values())) if isinstance(each, Mapping) else {str(each)} if each else set()
    return found.pop() if len(found) == 1 else None


def accelerators(task: Mapping[str, Any]) -> tuple[str, int] | None:
    """The GPU and count of a task, or None."""
    value = (task.get("resources") or {}).get("accelerators")
    if isinstance(value, Mapping):
        kind, count = next(iter(value.items()))
        return str(kind), int(count)
    return parse_gpus(str(value)) if value else None


def _memory_for(task: Mapping[str, Any], count: int) -> str | None:
    """The task's ``memory`` ("96+", GiB of the machine), scaled for more GPUs than it names: one process each.

    Never less, because fewer GPUs hold the same checkpoint. None for a task without such memory or a single GPU type.
    """
    resources = task.get("resources") or {}
    memory, gpus = str(resources.get("memory") or "").removesuffix("+"), resources.get("accelerators")
    if not memory.isdigit() or not (isinstance(gpus, str) and _GPUS.fullmatch(gpus)):
        return None
    return f"{max(int(memory), -(-int(memory) * count // parse_gpus(gpus)[1]))}+"


def to_yaml(task: Mapping[str, Any]) -> str:
    """The task as YAML, keys in the given order, multi-line commands as blocks."""
    return yaml.dump(dict(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text as a block."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
