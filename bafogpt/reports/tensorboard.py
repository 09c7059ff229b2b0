"""A run's metrics as TensorBoard event files, written from the bucket and updated as it grows; and TensorBoard itself.

The tags are those of :mod:`bafogpt.reports.metric_tags`; the resolved job is added as text. Lines are written in the
order in which they came. For steps that were repeated after an interruption, TensorBoard drops the earlier points.

Only the ``tensorboard`` package is needed, neither TensorFlow nor torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bafogpt.core.errors import BafoError, ConflictError, UnreachableError
from bafogpt.reports import metric_tags
from bafogpt.runs.fields import JsonObject, get_float, get_int
from bafogpt.runs.log_segments import SegmentReader
from bafogpt.runs.store import SYSTEM_STATS, RunStore

LOOPBACK = "127.0.0.1"
RELOAD_S = 5
_EVENTS = "events.out.tfevents."


def require_installed() -> None:
    """Raise :class:`BafoError` unless TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise BafoError("TensorBoard is not installed", "pip install 'bafogpt[tensorboard]'")


class TensorBoardExport:
    """Writes one run's event file to ``folder/NAME``, in place of the file of an earlier export."""

    def __init__(self, store: RunStore, name: str, folder: Path) -> None:
        """Raises :class:`~bafogpt.core.errors.RunNotFoundError`, and :class:`BafoError` without TensorBoard."""
        require_installed()
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        record = store.load(name)
        self.folder = folder / name
        for old in self.folder.glob(f"{_EVENTS}*"):
            old.unlink()
        self._metrics = SegmentReader(store.folder(name), "metrics")
        self._system_stats = SegmentReader(store.folder(name), SYSTEM_STATS)
        self._step = 0
        self._machine_step: dict[int, int] = {}
        self._writer = EventFileWriter(str(self.folder))
        self._text("job", record.job)

    def update(self) -> int:
        """Write the lines that are new in the bucket; returns how many."""
        new = metric_tags.merge_by_time(self._metrics.read(), self._system_stats.read())
        for feed, line in new:
            (self._metric, self._machine)[feed](line)
        self._writer.flush()
        return len(new)

    def close(self) -> None:
        self._writer.close()

    def _metric(self, line: JsonObject) -> None:
        step = get_int(line, "step") or 0
        if "loss" in line:  # a validation follows the line of its step
            if step <= self._step:
                self._drop_from(step)
            self._step = step
        self._scalars(line, metric_tags.of_metrics(line))

    def _drop_from(self, step: int) -> None:
        """Make TensorBoard drop the points from ``step`` on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        self._machine_step.clear()

    def _machine(self, line: JsonObject) -> None:
        """The first line of each step: a tag has one value per step."""
        node, step = get_int(line, "node") or 0, get_int(line, "step") or 0
        if self._machine_step.get(node) == step:
            return
        self._machine_step[node] = step
        self._scalars(line, metric_tags.of_system_stats(line))

    def _scalars(self, line: JsonObject, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        if found:
            self._write(Summary(value=found), get_int(line, "step") or 0, get_float(line, "time"))

    def _text(self, tag: str, what: dict[str, Any]) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        listing = yaml.safe_dump(what, sort_keys=False, allow_unicode=True)
        self._write(text_pb(tag, "".join(f"    {line}\n" for line in listing.splitlines())), 0, None)

    def _write(self, summary: Any, step: int, at: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time() if at is None else at, step=step, summary=summary))


def start(folder: Path, port: int | None = None) -> str:
    """Start TensorBoard on the event files below ``folder``, in a thread of this process. Returns its URL.

    It listens on the loopback address; ``port`` None is 6006 or the next free one. Raises :class:`ConflictError` for a
    taken port.
    """
    require_installed()
    from tensorboard import program

    arguments = [f"--logdir={folder}", f"--host={LOOPBACK}", f"--reload_interval={RELOAD_S}"]
    board = program.TensorBoard()
    board.configure([None, *arguments, *([f"--port={port}"] if port else [])])
    try:
        return str(board.launch())
    except program.TensorBoardServerException as error:
        raise ConflictError(f"TensorBoard did not start: {error.msg}", "leave --port out to use a free one") from None


def keep_updating(
    exports: list[TensorBoardExport], every_s: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Update the exports every ``every_s`` seconds, until an exception such as Ctrl-C."""
    while True:
        sleep(every_s)
        for export in exports:
            with contextlib.suppress(UnreachableError):  # the next update may reach the bucket
                export.update()
