"""``python -m bafogpt.agent.tracking.process FOLDER``: sends a run's metrics on to one tracking service while it runs.

A process of its own, started by :mod:`bafogpt.agent.tracking.sidecar`, so that nothing a service or its package does
can touch the run. It reads one line of JSON from its input, a :class:`~bafogpt.jobs.tracking.TrackedRun`; then it
follows the files in FOLDER until a second line says how the run ended. It never imports torch.

Each process reads the run's lines from the first on, those of earlier attempts too (from the bucket, where this disk
does not have them), makes rows of them, one a step, and sends what the service lacks. Steps that were done again from a
checkpoint are the same steps with the same losses: the first time counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from bafogpt.agent.recorder import system_stats_file
from bafogpt.agent.tracking.services import TRACKERS, Row, SyncedState, Tracker
from bafogpt.agent.watchdog import JsonlTail
from bafogpt.core import schema, settings
from bafogpt.core.errors import BafoError, StorageError
from bafogpt.jobs.tracking import TrackedRun, redact
from bafogpt.reports import metric_tags
from bafogpt.runs import log_segments
from bafogpt.runs.fields import JsonObject, get_float, get_int
from bafogpt.runs.store import SYSTEM_STATS, RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles

EVERY_S = 1.0
RETRY_S = 60.0
"""The longest time between two tries at a service that cannot be reached."""
BATCH_ROWS = 200
EXIT_UNSENT = 3
"""It has said what it could not do, and to start it again would not help."""
NICENESS = 10


class Rows:
    """Lines of metrics and system_stats as rows, one a step, in the order of their steps.

    A row is complete when a later step has begun: a validation follows the line of its step. The machine's numbers go
    into the row that is open when they come; of several, and of steps that were done again, the first count.
    """

    def __init__(self) -> None:
        self._trained = -1
        self._open: Row | None = None
        self._complete: list[Row] = []

    def metrics(self, line: JsonObject) -> None:
        step = get_int(line, "step")
        if step is None or step < self._trained or (step == self._trained and "loss" in line):
            return
        if "loss" in line:
            self._trained = step
        if self._open is None or step > self._open.step:
            self._begin(step, line)
        self._add(metric_tags.of_metrics(line))

    def system_stats(self, line: JsonObject) -> None:
        if self._open is None:
            self._begin(get_int(line, "step") or 0, line)
        self._add(metric_tags.of_system_stats(line))

    def take(self, *, whole_run: bool) -> list[Row]:
        """The rows that are complete; where the run has ended, the open one is."""
        taken, self._complete = self._complete, []
        if whole_run and self._open is not None:
            taken.append(self._open)
            self._open = None
        return taken

    def _begin(self, step: int, line: JsonObject) -> None:
        if self._open is not None:
            self._complete.append(self._open)
        self._open = Row(step, get_float(line, "time") or 0.0)

    def _add(self, values: dict[str, float]) -> None:
        assert self._open
        for tag, value in values.items():
            self._open.values.setdefault(tag, value)


class Lines:
    """The lines of a run as they are written; the first look gives all there are of earlier attempts, too."""

    def __init__(self, trainer_files: TrainerFiles, attempt: int, run: Bucket, say: Callable[[str], None]) -> None:
        self._trainer_files, self._attempt, self._run, self._say = trainer_files, attempt, run, say
        self._system_stats = JsonlTail(system_stats_file(trainer_files, attempt))
        self._metrics = JsonlTail(trainer_files.metrics(attempt))
        self._first = True

    def read_into(self, rows: Rows) -> None:
        """What was written since the last call."""
        looks = [*self._earlier()] if self._first else []
        self._first = False
        told = list(
            self._system_stats.read()
        )  # before the metrics: what the machine did belongs to a step that is known
        for metrics, machine in [*looks, (list(self._metrics.read()), told)]:
            for index, line in metric_tags.merge_by_time(metrics, machine):
                (rows.metrics, rows.system_stats)[index](line)

    def _earlier(self) -> Iterator[tuple[Sequence[JsonObject], Sequence[JsonObject]]]:
        for attempt in range(1, self._attempt):
            yield (
                self._of(attempt, "metrics", self._trainer_files.metrics(attempt)),
                self._of(attempt, SYSTEM_STATS, system_stats_file(self._trainer_files, attempt)),
            )

    def _of(self, attempt: int, kind: str, file: Path) -> list[JsonObject]:
        if file.exists():
            return list(JsonlTail(file).read())
        try:
            return list(log_segments.read_lines(self._run, kind, attempt))
        except StorageError as error:
            self._say(f"what attempt {attempt} wrote cannot be read: {error.message}")
            return []


class Sender:
    """Sends rows, each once, as far as the service can be reached; what it could not take waits."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._say = say
        self._held: SyncedState | None = None
        self._trouble = ""
        self.waiting: list[Row] = []

    def send(self, rows: Sequence[Row]) -> bool:
        """Try to send all that waits, and ``rows``. Whether nothing is left."""
        self.waiting += rows
        try:
            if self._held is None:
                self._held = self._tracker.begin()
            while self.waiting:
                lacking = [self._held.lacks(row) for row in self.waiting[:BATCH_ROWS]]
                self._tracker.send([row for row in lacking if row.values])
                del self.waiting[:BATCH_ROWS]
        except ModuleNotFoundError:
            raise
        except Exception as error:  # another's package: it may raise anything, and none of it is the run's trouble
            self._held = None  # part of it may have arrived
            self._tell(error)
            return False
        if self._trouble:
            self._say("sending again")
        self._trouble = ""
        return True

    @property
    def done(self) -> bool:
        """Whether the service has all that it was sent."""
        return self._held is not None and not self.waiting

    def end(self, state: RunState) -> Path | None:
        """Say how the run ended; None too where the service does not hear it."""
        try:
            return self._tracker.end(state)
        except Exception as error:
            self._tell(error)
            return None

    def _tell(self, error: Exception) -> None:
        said = error.message if isinstance(error, BafoError) else f"{type(error).__name__}: {error}"
        words = redact(" ".join(said.split()))[:500]  # in this order: half a key would not be found
        if words != self._trouble:
            self._say(f"cannot send: {words}")
        self._trouble = words


class RunEnd:
    """How the run ended, once the supervisor has said so. Its own end, without a word, ends this process."""

    def __init__(self, words: TextIO) -> None:
        self.state: RunState | None = None
        self._told = threading.Event()
        self._words = words
        threading.Thread(target=self._listen, name="ending", daemon=True).start()

    def wait(self, seconds: float) -> None:
        self._told.wait(seconds)

    def _listen(self) -> None:
        word = self._words.readline().strip()
        if word not in ("succeeded", "stopped", "failed"):
            os._exit(EXIT_UNSENT)
        self.state = word  # type: ignore[assignment]
        self._told.set()


def track(lines: Lines, sender: Sender, ending: RunEnd) -> RunState:
    """Follow the run to its end. Returns how that was; whether all was sent, ``sender`` knows."""
    rows = Rows()
    pause = EVERY_S
    while True:
        state = ending.state  # before the look: after it, nothing more is written
        lines.read_into(rows)
        sent = sender.send(rows.take(whole_run=state is not None))
        if state is not None:
            return state
        pause = EVERY_S if sent else min(RETRY_S, 2 * pause)
        ending.wait(pause)


def main(folder: Path, words: TextIO) -> int:
    """Returns the exit code."""
    for each in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C comes here too; but there is more to send
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICENESS)
    run = schema.build(TrackedRun, json.loads(words.readline()), where="the supervisor's word")
    ending = RunEnd(words)
    trainer_files = TrainerFiles(folder)
    bucket = RunStore(Bucket.open(run.bucket, settings.load())).folder(run.name)
    sender = Sender(TRACKERS[run.service](run, folder / "tracking"), say)
    try:
        state = track(Lines(trainer_files, run.attempt, bucket, say), sender, ending)
    except ModuleNotFoundError as error:
        say(f"{error.name} is not installed: nothing is sent")
        return EXIT_UNSENT
    if not sender.done:
        say(f"{len(sender.waiting)} steps were not sent")
        return EXIT_UNSENT
    written = sender.end(state)
    if written is not None:
        path = f"{run.service}/{written.name}"
        bucket.upload(path, written)
        say(f"what was not sent, for `wandb sync`: {bucket.url}/{path}")
    return 0


def say(line: str) -> None:
    """To the run's log, by way of the supervisor."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.stdin))
    except BafoError as failure:
        say(f"{failure.message}; {failure.hint}")
        sys.exit(EXIT_UNSENT)
