"""Notes about runs that were launched from here onto rented machines, ``<home>/rented/<name>.json``.

Written before anything is asked of SkyPilot. They say which engine a run's name belongs to, so that ``cloud`` commands
about runs on this machine never wait for SkyPilot; what is true of a run stands in SkyPilot's books and in the bucket.
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
    """The notes of one home."""

    def __init__(self, settings: Settings) -> None:
        self._folder = Path(settings.home) / "rented"

    def write(self, name: str, *, infra: str, managed: bool) -> None:
        """Note that a launch begins."""
        self._folder.mkdir(parents=True, exist_ok=True)
        note = {"name": check_name(name), "infra": infra, "managed": managed, "launched": now()}
        files.write_atomic(self._folder / f"{name}.json", json.dumps(note))

    def remove(self, name: str) -> None:
        """Forget the run; its record in the bucket stays."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        (self._folder / f"{name}.log").unlink(missing_ok=True)
        self.drop_code(name)

    def names(self) -> list[str]:
        """Every run that was launched from here and not taken down."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def holds(self, name: str) -> bool:
        """Whether there is a note about the run."""
        return (self._folder / f"{name}.json").exists()

    def managed(self, name: str) -> bool:
        """Whether the run was launched as a managed job."""
        return bool(self._read(name).get("managed"))

    def infra(self, name: str) -> str:
        """Where it was to run; empty without a note."""
        return str(self._read(name).get("infra", ""))

    def code(self, name: str) -> Path:
        """Where the code of the run lies while SkyPilot may still send it.

        SkyPilot's server on this machine sends a folder from where it is: at the launch, which goes on when its client
        is killed, and at every recovery of a managed job.
        """
        return self._folder / f"{name}.code"

    def drop_code(self, name: str) -> None:
        """Remove the run's code: it will not be sent again."""
        shutil.rmtree(self.code(name), ignore_errors=True)

    def log(self, name: str) -> Path:
        """Where the watchman of its launch writes what he did."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name}.log"

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / f"{name}.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}
