"""Finds ``jobs/`` and ``sky/``: those of the current folder or one above it, else the ones that come with bafogpt."""

from __future__ import annotations

from pathlib import Path

import bafogpt
from bafogpt.core.errors import ConfigError, did_you_mean


def root(cwd: Path | None = None) -> Path:
    """The nearest folder at or above ``cwd`` with ``jobs/`` and ``sky/``; else this package's checkout or wheel."""
    here = (cwd or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "jobs").is_dir() and (folder / "sky").is_dir():
            return folder
    package = Path(bafogpt.__file__).parent
    checkout = package.parent
    return checkout if (checkout / "jobs").is_dir() else package / "_project"


def job_file(name: str, cwd: Path | None = None) -> Path:
    """The file of a job given by name (``pretrain``) or by path. Raises :class:`ConfigError` naming the nearest."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_absolute():
            path = (cwd or Path.cwd()) / path
        if not path.is_file():
            raise ConfigError(f"{name} does not exist", "ls jobs")
        return path
    folder = root(cwd) / "jobs"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.yaml"))
        raise ConfigError(
            f"no job '{name}'{did_you_mean(name, known)}; jobs: {', '.join(known) or 'none'}",
            f"bafogpt cloud launch {known[0] if known else 'path/to/job.yaml'}",
        )
    return path
