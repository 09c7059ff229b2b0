"""A run's records on their way to the bucket: log lines, events, metrics, system stats, the run's record."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bafogpt.agent import system_stats
from bafogpt.agent.budget import Budget
from bafogpt.core.errors import BafoError, StorageError
from bafogpt.jobs.job import SupervisorConfig
from bafogpt.runs import usage
from bafogpt.runs.log_segments import FileUploader, SegmentWriter
from bafogpt.runs.store import SYSTEM_STATS, RunRecord, RunStore
from bafogpt.train.trainer_io import TrainerFiles


@dataclass(frozen=True)
class Outage:
    """A bucket that refuses requests: since when (monotonic seconds), and its last error."""

    since: float
    error: BafoError


class Recorder:
    """Writes local files first; a thread sends them to the bucket every ``flush_s`` seconds.

    ``outage`` is set while the bucket refuses; what could not be sent goes with the next flush. Node 0 keeps the run's
    record and the attempt's usage too.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        trainer_files: TrainerFiles,
        config: SupervisorConfig,
        *,
        budget: Budget | None = None,
        node: int = 0,
    ) -> None:
        self.record = record
        self.attempt = record.attempts
        self.outage: Outage | None = None
        self._store = store
        self._run = store.folder(record.name)
        files = segment_files(trainer_files, self.attempt)
        self._log, self._events = (files[kind].open("a", encoding="utf-8", buffering=1) for kind in ("logs", "events"))
        self._writers = [
            SegmentWriter(self._run, kind, attempt, file, node)
            for attempt in range(1, self.attempt + 1)  # what an earlier attempt on this disk could not send goes too
            for kind, file in segment_files(trainer_files, attempt).items()
        ]
        self._system_stats = system_stats.StatsLogger(
            files[SYSTEM_STATS], attempt=self.attempt, more=self._progress, every_s=config.system_stats_s
        )
        self._profile = FileUploader(self._run, "profile", trainer_files.profile)
        self._every_s = config.flush_s
        self._node = node
        self._budget = budget
        self._usage_written_at = -float("inf")
        self._changed = False
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._thread = threading.Thread(target=self._flush_repeatedly, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._system_stats.start()

    def log(self, line: str) -> None:
        """Write a line to the terminal and to the run's log."""
        with self._lock:
            print(line, flush=True)
            if not self._log.closed:
                self._log.write(line + "\n")

    def append_log(self, lines: Iterable[str]) -> None:
        """Write lines to the run's log only."""
        with self._lock:
            self._log.writelines(f"{line}\n" for line in lines)

    def event(self, kind: str, **values: Any) -> None:
        """Write an event, for ``bafogpt runs show`` and the report."""
        line = {"time": round(time.time(), 3), "attempt": self.attempt, "event": kind, **values}
        if self._node:
            line["node"] = self._node
        with self._lock:
            if not self._events.closed:  # a publication that did not end in time may still report
                self._events.write(json.dumps(line) + "\n")

    def update(self, **changes: Any) -> None:
        """Change the run's record; the next flush sends it."""
        self.record = replace(self.record, **changes)
        self._changed = True

    def flush(self) -> None:
        """Send everything now; from any thread. Raises :class:`StorageError`."""
        with self._flushing:
            for writer in self._writers:
                writer.flush()
            for path in self._profile.flush():
                self.event("profile_sent", path=path)
            self._write_usage()
            if self._changed and self._node == 0:
                self._changed = False
                try:
                    self._store.save(self.record)  # which may have changed again when this returns
                except StorageError:
                    self._changed = True
                    raise

    def close(self) -> None:
        """Stop the thread and close the files: later lines go to the terminal only. Call :meth:`flush` afterwards."""
        self._system_stats.close()
        self._closing.set()
        self._thread.join()
        with self._lock:
            self._log.close()
            self._events.close()

    def _progress(self) -> dict[str, Any]:
        """The run's step and cost, for the system stats."""
        return {"step": self.record.step, **({"usd": round(self._budget.usd, 6)} if self._budget else {})}

    def _write_usage(self) -> None:
        """Write the attempt's usage, at intervals and at its end."""
        now = time.monotonic()
        if self._budget and (self._closing.is_set() or now - self._usage_written_at >= usage.USAGE_EVERY_S):
            usage.write(self._run, self._budget.usage)
            self._usage_written_at = now

    def _flush_repeatedly(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self.flush()
                self.outage = None
            except StorageError as error:
                if self.outage is None:
                    print(f"cannot send records: {error.message}", file=sys.stderr, flush=True)
                self.outage = Outage(self.outage.since if self.outage else time.monotonic(), error)


def segment_files(trainer_files: TrainerFiles, attempt: int) -> dict[str, Path]:
    """The local files of an attempt, by their folder in the run's bucket."""
    return {
        "logs": trainer_files.folder / f"log-{attempt:04d}.log",
        "events": trainer_files.folder / f"events-{attempt:04d}.jsonl",
        "metrics": trainer_files.metrics(attempt),
        SYSTEM_STATS: trainer_files.folder / f"system_stats-{attempt:04d}.jsonl",
    }
