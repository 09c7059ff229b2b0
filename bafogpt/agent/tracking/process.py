"""``python -m bafogpt.agent.tracking.process FOLDER``: sends a run's metrics to one tracking service while it runs.

It is a process of its own, started by :mod:`bafogpt.agent.tracking.sidecar`, so that no failure of a service or its
package can affect the run. Its input is one line of JSON, a :class:`~bafogpt.jobs.tracking.TrackedRun`, and at the end
of the run a second line with the run's state; meanwhile it follows the files in FOLDER. It never imports torch.

Each process reads the run's lines from the beginning, those of earlier attempts too (from the bucket, where they are
not on this disk), collects them by step, and sends what the service lacks. Steps that were done again after a restart
have the same losses: the first time counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from bafogpt.agent.outcome import EXIT_CODES
from bafogpt.agent.progress import JsonlTail
from bafogpt.agent.recorder import segment_files
from bafogpt.agent.tracking.services import TRACKERS, TaggedStep, Tracker
from bafogpt.core import schema, settings
from bafogpt.core.errors import BafoError, StorageError
from bafogpt.jobs.tracking import TrackedRun, redact
from bafogpt.reports import metric_tags
from bafogpt.runs.fields import JsonObject, get_float, get_int
from bafogpt.runs.log_segments import SegmentReader
from bafogpt.runs.store import SYSTEM_STATS, RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles

POLL_S = 1.0
RETRY_S = 60.0
"""The longest time between two tries while a service cannot be reached."""
BATCH_STEPS = 200
EXIT_UNSENT = 3
"""It has logged why something was not sent; starting it again would not help."""
NICENESS = 10


class StepCollector:
    """Collects lines of metrics and system stats by step, in ascending order.

    A step is complete when a later one has begun: a validation follows the line of its step. System stats belong to the
    step that is open when they come. The first value of a tag counts.
    """

    def __init__(self) -> None:
        self._trained = -1
        self._open: TaggedStep | None = None
        self._complete: list[TaggedStep] = []

    def metrics(self, line: JsonObject) -> None:
        step = get_int(line, "step")
        if step is None or step < self._trained or (step == self._trained and "loss" in line):
            return
        if "loss" in line:
            self._trained = step
        self._add(line, step, metric_tags.of_metrics(line))

    def system_stats(self, line: JsonObject) -> None:
        step = self._open.step if self._open else get_int(line, "step") or 0
        self._add(line, step, metric_tags.of_system_stats(line))

    def take(self, *, whole_run: bool) -> list[TaggedStep]:
        """The complete steps; with ``whole_run`` the open one too."""
        if whole_run and self._open is not None:
            self._complete.append(self._open)
            self._open = None
        taken, self._complete = self._complete, []
        return taken

    def _add(self, line: JsonObject, step: int, values: dict[str, float]) -> None:
        if self._open is None or step > self._open.step:
            if self._open is not None:
                self._complete.append(self._open)
            self._open = TaggedStep(step, get_float(line, "time") or 0.0)
        self._open.values = values | self._open.values


class RunReader:
    """Reads the lines of a run as they are written; the first call reads those of earlier attempts too."""

    def __init__(self, trainer_files: TrainerFiles, attempt: int, run: Bucket, log: Callable[[str], None]) -> None:
        self._trainer_files, self._run, self._log = trainer_files, run, log
        files = segment_files(trainer_files, attempt)
        self._system_stats, self._metrics = JsonlTail(files[SYSTEM_STATS]), JsonlTail(files["metrics"])
        self._earlier = range(1, attempt)

    def read_into(self, steps: StepCollector) -> None:
        """Read what was written since the last call."""
        chunks = [(self._of(each, "metrics"), self._of(each, SYSTEM_STATS)) for each in self._earlier]
        self._earlier = range(0)
        machine = list(self._system_stats.read())  # before the metrics, so that their steps are known
        for metrics, stats in [*chunks, (list(self._metrics.read()), machine)]:
            for index, line in metric_tags.merge_by_time(metrics, stats):
                (steps.metrics, steps.system_stats)[index](line)

    def _of(self, attempt: int, kind: str) -> list[JsonObject]:
        """The lines of an earlier attempt."""
        file = segment_files(self._trainer_files, attempt)[kind]
        if file.exists():
            return list(JsonlTail(file).read())
        try:
            return SegmentReader(self._run, kind, attempt=attempt).read()
        except StorageError as error:
            self._log(f"the {kind} of attempt {attempt} cannot be read: {error.message}")
            return []


class Sender:
    """Sends each step once; while the service cannot be reached, steps wait."""

    def __init__(self, tracker: Tracker, log: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._log = log
        self._synced: Mapping[str, int] | None = None
        self._error = ""
        self.waiting: list[TaggedStep] = []

    @property
    def done(self) -> bool:
        """Whether the service has everything that it was given."""
        return self._synced is not None and not self.waiting

    def send(self, steps: Sequence[TaggedStep]) -> bool:
        """Try to send what waits, and ``steps``. Whether nothing is left."""
        self.waiting += steps
        try:
            if self._synced is None:
                self._synced = self._tracker.begin()
            while self.waiting:
                lacking = [each.after(self._synced) for each in self.waiting[:BATCH_STEPS]]
                self._tracker.send([each for each in lacking if each.values])
                del self.waiting[:BATCH_STEPS]
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the package may raise anything, and none of it may end the run
            self._synced = None  # part of it may have arrived
            self._report(error)
            return False
        if self._error:
            self._log("sending again")
        self._error = ""
        return True

    def end(self, state: RunState) -> Path | None:
        """Report how the run ended; None too where that fails."""
        try:
            return self._tracker.end(state)
        except Exception as error:
            self._report(error)
            return None

    def _report(self, error: Exception) -> None:
        text = error.message if isinstance(error, BafoError) else f"{type(error).__name__}: {error}"
        text = redact(" ".join(text.split()))[:500]  # in this order: half a key would not be found
        if text != self._error:
            self._log(f"cannot send: {text}")
        self._error = text


class EndListener:
    """Waits for the line with the run's state. If the supervisor ends without one, this process ends too."""

    def __init__(self, lines: TextIO) -> None:
        self.state: RunState | None = None
        self._received = threading.Event()
        self._lines = lines
        threading.Thread(target=self._listen, name="end listener", daemon=True).start()

    def wait(self, seconds: float) -> None:
        self._received.wait(seconds)

    def _listen(self) -> None:
        word = self._lines.readline().strip()
        if word not in EXIT_CODES:
            os._exit(EXIT_UNSENT)
        self.state = word
        self._received.set()


def track(reader: RunReader, sender: Sender, end: EndListener) -> RunState:
    """Follow the run to its end; returns its state. ``sender.done`` is whether everything was sent."""
    steps = StepCollector()
    pause = POLL_S
    while True:
        state = end.state  # before the read: nothing is written after it
        reader.read_into(steps)
        sent = sender.send(steps.take(whole_run=state is not None))
        if state is not None:
            return state
        pause = POLL_S if sent else min(RETRY_S, 2 * pause)
        end.wait(pause)


def main(folder: Path, lines: TextIO) -> int:
    """Returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C arrives here too, before the last metrics
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    run = schema.build(TrackedRun, json.loads(lines.readline()), where="the supervisor's input")
    end = EndListener(lines)
    bucket = RunStore(Bucket.open(run.bucket, settings.load())).folder(run.name)
    sender = Sender(TRACKERS[run.service](run, folder / "tracking"), log)
    try:
        state = track(RunReader(TrainerFiles(folder), run.attempt, bucket, log), sender, end)
    except ModuleNotFoundError as error:
        log(f"{error.name} is not installed: nothing is sent")
        return EXIT_UNSENT
    if not sender.done:
        log(f"{len(sender.waiting)} steps were not sent")
        return EXIT_UNSENT
    if (written := sender.end(state)) is not None:
        path = f"{run.service}/{written.name}"
        bucket.upload(path, written)
        log(f"offline metrics, for `wandb sync`: {bucket.url}/{path}")
    return 0


def log(line: str) -> None:
    """To the run's log, through the supervisor."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.stdin))
    except BafoError as failure:
        log(f"{failure.message}; {failure.hint}")
        sys.exit(EXIT_UNSENT)
