"""A run's metrics as TensorBoard's event files, made from the bucket and kept up with it; and TensorBoard on them.

The tags are those of :mod:`bafogpt.reports.metric_tags`; the resolved job is there as text. Every line is written in
the order in which it came: where steps were done again after a kill, TensorBoard is told to drop the earlier ones, so
the curve is one.

The ``tensorboard`` package writes the files and shows them; TensorFlow is not needed, nor torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bafogpt.core import process
from bafogpt.core.errors import BafoError, ConflictError, UnreachableError
from bafogpt.reports import metric_tags
from bafogpt.runs.fields import JsonObject, get_float, get_int
from bafogpt.runs.log_segments import SegmentReader
from bafogpt.runs.store import SYSTEM_STATS, RunStore

PORT = 6006
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
RELOAD_S = 5
_EVENTS = "events.out.tfevents."


def require() -> None:
    """Raise :class:`BafoError` where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise BafoError("TensorBoard is not installed", "pip install 'bafogpt[tensorboard]'")


class Export:
    """Writes one run's event file below ``folder``; what an earlier export left there goes."""

    def __init__(self, store: RunStore, name: str, folder: Path) -> None:
        """Raises :class:`~bafogpt.core.errors.RunNotFoundError`, and :class:`BafoError` without TensorBoard."""
        require()
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
        """Write what is new in the bucket; returns how many lines that was."""
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
                self._begin_again(step)
            self._step = step
        self._scalars(line, metric_tags.of_metrics(line))

    def _begin_again(self, step: int) -> None:
        """Tell TensorBoard that what it has from ``step`` on counts no more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        self._machine_step.clear()

    def _machine(self, line: JsonObject) -> None:
        """StatsLogger of one moment. Of several within a step, the first counts: a tag has one value a step."""
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


@contextlib.contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[str]:
    """TensorBoard on the event files below ``folder``, on the loopback address, until the block is left.

    Yields its URL once it answers. ``port`` none is 6006, or a free one where that is taken; a taken ``port`` is a
    :class:`ConflictError`. Raises :class:`BafoError` when it does not come up.
    """
    require()
    chosen = _port(port)
    log = folder / "tensorboard.log"
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"--logdir={folder}", f"--host={LOOPBACK}", f"--port={chosen}", f"--reload_interval={RELOAD_S}"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            preexec_fn=process.die_with_parent(),
        )
    url = f"http://{LOOPBACK}:{chosen}/"
    try:
        if not process.wait_until(lambda: server.poll() is not None or _answers(url), START_TIMEOUT_S, poll_s=0.2):
            raise BafoError(f"TensorBoard did not answer within {START_TIMEOUT_S:g} s", f"cat {log}")
        if server.poll() is not None:
            raise BafoError(f"TensorBoard ended with exit code {server.returncode}", f"cat {log}")
        yield url
    finally:
        below = process.descendants(server.pid)  # its data server
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        process.end(below, grace_s=1)


def keep_up(exports: list[Export], every_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Carry over what is new, again and again, until something is raised (Ctrl-C is)."""
    while True:
        sleep(every_s)
        for export in exports:
            with contextlib.suppress(UnreachableError):  # the next look may reach it
                export.update()


def _port(wanted: int | None) -> int:
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConflictError(f"port {wanted} is taken on this machine", "leave --port out, and a free one is found")


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's loopback
    try:
        with opener.open(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False
