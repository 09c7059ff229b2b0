"""The real tracker around a service that a test wants: FAKE_TRACKER is ``hang``, ``crash`` or ``missing``."""

from __future__ import annotations

import collections
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from bafogpt.agent.tracking import process
from bafogpt.agent.tracking.services import TRACKERS, TaggedStep
from bafogpt.jobs.tracking import TrackedRun
from bafogpt.runs.store import RunState


class Odd:
    """A service whose package does what no package should."""

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        self._behaviour = os.environ["FAKE_TRACKER"]

    def begin(self) -> Mapping[str, int]:
        if self._behaviour == "missing":
            raise ModuleNotFoundError(name="mlflow")
        return collections.defaultdict(lambda: -1)

    def send(self, rows: Sequence[TaggedStep]) -> None:
        print(f"planted: {os.environ.get('MLFLOW_TRACKING_PASSWORD')}", flush=True)
        if self._behaviour == "crash":
            os._exit(9)
        threading.Event().wait()

    def end(self, state: RunState) -> None:
        return None


if __name__ == "__main__":
    TRACKERS["mlflow"] = Odd  # type: ignore[assignment]
    sys.exit(process.main(Path(sys.argv[1]), sys.stdin))
