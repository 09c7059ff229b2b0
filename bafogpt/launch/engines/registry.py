"""Runs that were launched from here onto rented machines: ``<home>/rented/<name>.json``.

An entry is written before the first request to SkyPilot. With it, ``cloud`` commands about runs on this machine never
wait for SkyPilot. A run's actual state is at SkyPilot and in the bucket.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bafogpt.core import files
from bafogpt.core.settings import Settings
from bafogpt.runs.store import check_name, now


class LaunchRegistry:
    """The entries of one home."""

    def __init__(self, settings: Settings) -> None:
        self._folder = Path(settings.home) / "rented"

    def write(self, name: str, *, infra: str, managed: bool) -> None:
        """Add an entry at the beginning of a launch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {"name": check_name(name), "infra": infra, "managed": managed, "launched": now()}
        files.write_atomic(self._folder / f"{name}.json", json.dumps(entry))

    def remove(self, name: str) -> None:
        """Remove the run's entry, log and code; its record in the bucket stays."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        (self._folder / f"{name}.log").unlink(missing_ok=True)
        self.drop_code(name)

    def names(self) -> list[str]:
        """Every run that was launched from here and not taken down."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def has(self, name: str) -> bool:
        return (self._folder / f"{name}.json").exists()

    def managed(self, name: str) -> bool:
        """Whether the run was launched as a managed job."""
        return bool(self._read(name).get("managed"))

    def infra(self, name: str) -> str:
        """Its ``--infra``; empty without an entry."""
        return str(self._read(name).get("infra", ""))

    def code(self, name: str) -> Path:
        """The folder of the run's code, kept while SkyPilot may still send it.

        SkyPilot's server on this machine sends the folder itself: at the launch, which continues when its client is
        killed, and at every recovery of a managed job.
        """
        return self._folder / f"{name}.code"

    def drop_code(self, name: str) -> None:
        """Remove the run's code."""
        shutil.rmtree(self.code(name), ignore_errors=True)

    def log(self, name: str) -> Path:
        """The log of the launch's watchdog."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name}.log"

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / f"{name}.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}
