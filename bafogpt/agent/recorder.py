"""What a supervisor writes down: log lines, events, the run's record; and their way to the bucket while it runs."""

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
from bafogpt.runs import usage
from bafogpt.runs.log_segments import FileUploader, SegmentWriter
from bafogpt.runs.store import SYSTEM_STATS, RunRecord, RunStore
from bafogpt.train.trainer_io import TrainerFiles


@dataclass(frozen=True)
class Outage:
    """A bucket that does not do what is asked: since when (monotonic seconds), and what it last said."""

    since: float
    error: BafoError


class Recorder:
    """Local files first, the bucket every ``every_s`` seconds by a thread, so that nobody waits for a bucket.

    ``failing`` is set while the bucket refuses; what could not be sent stays in the local files and goes with the next
    sending. Node 0 keeps the run's record, and the account of what the attempt has cost; other nodes have feeds only.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        trainer_files: TrainerFiles,
        every_s: float,
        system_stats_s: float = 10.0,
        *,
        budget: Budget | None = None,
        node: int = 0,
    ) -> None:
        self.record = record
        self.attempt = attempt = record.attempts
        self.outage: Outage | None = None
        self._store = store
        self._log = _log_file(trainer_files, attempt).open("a", encoding="utf-8", buffering=1)
        self._events = _events_file(trainer_files, attempt).open("a", encoding="utf-8", buffering=1)
        bucket = store.folder(record.name)
        self._feeds = [
            feed
            for each in range(1, attempt + 1)  # what an earlier attempt on this disk could not send goes too
            if _log_file(trainer_files, each).exists()
            for feed in (
                SegmentWriter(bucket, "logs", each, _log_file(trainer_files, each), "log", node),
                SegmentWriter(bucket, "events", each, _events_file(trainer_files, each), "jsonl", node),
                SegmentWriter(bucket, "metrics", each, trainer_files.metrics(each), "jsonl", node),
                SegmentWriter(bucket, SYSTEM_STATS, each, system_stats_file(trainer_files, each), "jsonl", node),
            )
        ]
        self._system_stats = system_stats.StatsLogger(
            system_stats_file(trainer_files, attempt),
            attempt=attempt,
            more=self._progress,
            every_s=system_stats_s,
        )
        self._profile = FileUploader(bucket, "profile", trainer_files.profile)
        self._every_s = every_s
        self._node = node
        self._budget = budget
        self._metered = -float("inf")
        self._changed = False
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._shipping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._system_stats.start()

    def log(self, line: str) -> None:
        """A line for people: to the terminal and to the run's log."""
        with self._lock:
            print(line, flush=True)
            if not self._log.closed:
                self._log.write(line + "\n")

    def append_log(self, lines: Iterable[str]) -> None:
        """Lines that the terminal has shown already: to the run's log alone."""
        with self._lock:
            self._log.writelines(f"{line}\n" for line in lines)

    def event(self, kind: str, **values: Any) -> None:
        """Something that happened, for ``bafogpt runs show`` and the report."""
        line = {"time": round(time.time(), 3), "attempt": self.attempt, "event": kind, **values}
        if self._node:
            line["node"] = self._node
        with self._lock:
            if not self._events.closed:  # a publication that did not end in time may still tell of itself
                self._events.write(json.dumps(line) + "\n")

    def update(self, **changes: Any) -> None:
        """Change the run's record; it is sent with the next sending."""
        self.record = replace(self.record, **changes)
        self._changed = True

    def flush(self) -> None:
        """Send everything now; from any thread. Raises :class:`StorageError`."""
        with self._shipping:
            for feed in self._feeds:
                feed.flush()
            for path in self._profile.flush():
                self.event("profile_sent", path=path)
            self._meter()
            if self._changed and self._node == 0:
                self._changed = False
                try:
                    self._store.save(self.record)  # which may have changed again when this returns
                except StorageError:
                    self._changed = True
                    raise

    def _progress(self) -> dict[str, Any]:
        """How far the run is and what it has cost, for the system stats."""
        return {"step": self.record.step, **({"usd": round(self._budget.usd, 6)} if self._budget else {})}

    def _meter(self) -> None:
        """Write down what the attempt has cost, now and then and at its end."""
        now = time.monotonic()
        if self._budget and (self._closing.is_set() or now - self._metered >= usage.USAGE_EVERY_S):
            usage.write(self._store.folder(self.record.name), self._budget.span)
            self._metered = now

    def close(self) -> None:
        """Stop the thread and the files: what is said from here on goes to the terminal alone. Call :meth:`flush`
        after it, for the last lines."""
        self._system_stats.close()
        self._closing.set()
        self._thread.join()
        with self._lock:
            self._log.close()
            self._events.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self.flush()
                self.outage = None
            except StorageError as error:
                if self.outage is None:
                    print(f"cannot send records: {error.message}", file=sys.stderr, flush=True)
                self.outage = Outage(self.outage.since if self.outage else time.monotonic(), error)


def _log_file(trainer_files: TrainerFiles, attempt: int) -> Path:
    return trainer_files.folder / f"log-{attempt:04d}.txt"


def system_stats_file(trainer_files: TrainerFiles, attempt: int) -> Path:
    """The system_stats of one attempt, see :mod:`bafogpt.agent.system_stats`."""
    return trainer_files.folder / f"system_stats-{attempt:04d}.jsonl"


def _events_file(trainer_files: TrainerFiles, attempt: int) -> Path:
    return trainer_files.folder / f"events-{attempt:04d}.jsonl"
