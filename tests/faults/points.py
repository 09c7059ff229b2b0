"""Inside a process under test: it ends itself, as ``kill -9`` would, right before a given file operation.

No code under test knows of this. An audit hook sees every open for writing, rename, link, mkdir and removal below the
run's folder, ``os.fsync`` is wrapped, and so is each write of a checkpoint's own files, of which half is written.
The bench says which operation it shall be through a small file that is mapped into memory, at any time.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

BYTES = 4096
FOLDER, ARMED, TRACE = "FAULTS_FOLDER", "FAULTS_ARMED", "FAULTS_TRACE"
"""Variables: the run's folder; the mapped file (what befell is written beside it); where to list all points."""
_EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}
_NOT_POINTS = re.compile(r"(log-|events-|metrics-|cache/|lock$)")


class Armed:
    """The bench's end: says at which point which process ends, and reads that it did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = 0
        path.write_bytes(bytes(BYTES))

    def arm(self, process: str, label: str, nth: int) -> None:
        """``process`` ("supervisor", "trainer") ends right before its ``nth`` operation ``label`` from now on."""
        self.disarm()
        self._write({"process": process, "label": label, "nth": nth})

    def disarm(self) -> None:
        """No process ends."""
        self._write({})
        for path in self.path.parent.glob(f"{self.path.name}.hit-*"):
            path.unlink()

    def hit(self) -> dict[str, Any] | None:
        """What the process that ended wrote last: its label, and which saves were under way on disk."""
        path = self.path.with_name(f"{self.path.name}.hit-{self._generation}")
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found

    def living(self, process: str) -> list[int]:
        """The processes of that name that live, by age."""
        try:
            pids = self.path.with_name(f"{self.path.name}.{process}").read_text().split()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in pids if _lives(pid, process)]

    def _write(self, order: dict[str, Any]) -> None:
        self._generation += 1
        with self.path.open("r+b") as file, mmap.mmap(file.fileno(), BYTES) as shared:
            body = json.dumps(order).encode()
            shared[8:BYTES] = body.ljust(BYTES - 8, b"\0")
            shared[:8] = self._generation.to_bytes(8, "little")


def arm(process: str) -> None:
    """Make this process mortal. Call it first."""
    folder = Path(os.environ[FOLDER])
    handle = os.open(os.environ[ARMED], os.O_RDWR)
    point = _Point(process, folder, mmap.mmap(handle, BYTES))
    real_fsync = os.fsync

    def fsync(target: Any) -> None:
        number = target if isinstance(target, int) else target.fileno()
        point.passing("fsync", os.readlink(f"/proc/self/fd/{number}"))
        real_fsync(target)

    os.fsync = fsync
    sys.addaudithook(point.audit)
    with open(f"{os.environ[ARMED]}.{process}", "a") as pids:
        pids.write(f"{os.getpid()}\n")


def _lives(pid: str, process: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty when it is a zombie
    except OSError:
        return False
    return (b"worker.py" if process == "trainer" else b"victim.py") in words


def half_written(path: Path) -> None:
    """For the code under test's own writes: half of the file's bytes are in it now."""
    for point in _points:
        point.passing("half of", str(path))


_points: list[_Point] = []


class _Point:
    def __init__(self, process: str, folder: Path, shared: mmap.mmap) -> None:
        self._process = process
        self._folder = folder
        self._root = f"{folder}/"
        self._shared = shared
        self._generation = b""
        self._order: dict[str, Any] = {}
        self._left = 0
        self._busy = threading.local()
        trace = os.environ.get(TRACE)
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if trace else None
        _points.append(self)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or getattr(self._busy, "now", False):
            return
        path = arguments[0]
        if event == "open":
            _, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else mode and mode[0] in "wax"
            if not writes:
                return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, str | Path):
            if not os.path.isabs(path) and event in ("os.remove", "os.rmdir"):  # rmtree works with folders' handles
                path = f"{self._root}tree/{path}"
            self.passing(event.removeprefix("os."), str(path))

    def passing(self, operation: str, path: str) -> None:
        """At a point: go on, or end here."""
        if not path.startswith(self._root) or _NOT_POINTS.search(path, len(self._root)):
            return
        self._busy.now = True
        try:
            label = f"{operation} {_kind(path[len(self._root) :])}"
            if self._trace is not None:
                os.write(self._trace, f"{self._process}\t{label}\n".encode())
            if self._shared[:8] != self._generation:
                self._generation = self._shared[:8]
                self._order = json.loads(self._shared[8:BYTES].rstrip(b"\0") or b"{}")
                self._left = self._order.get("nth", 0)
            if self._order.get("process") == self._process and self._order.get("label") == label:
                self._left -= 1
                if self._left == 0:
                    self._end(label)
        finally:
            self._busy.now = False

    def _end(self, label: str) -> None:
        name = f"{os.environ[ARMED]}.hit-{int.from_bytes(self._generation, 'little')}"
        try:
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # another rank was first
            return
        os.write(handle, json.dumps({"label": label, "saves": saves_under_way(self._folder)}).encode())
        os.kill(os.getpid(), signal.SIGKILL)


def saves_under_way(folder: Path) -> list[int]:
    """Steps of the checkpoints that are on local disk, half written or whole."""
    try:
        names = os.listdir(folder / "checkpoints")
    except FileNotFoundError:
        return []
    found = (re.fullmatch(r"step-(\d+)|\.step-(\d+)\.partial", name) for name in names)
    return sorted(int(match[1] or match[2]) for match in found if match)


def _kind(path: str) -> str:
    """A path without what differs from run to run: numbers, ranks, random endings."""
    path = re.sub(r"(/|^)\.(?=[^/]*\.[a-z0-9_]{8}$)", r"\1", path)  # a temporary name of write_atomic …
    path = re.sub(r"\.[a-z0-9_]{8}$", ".temporary", path)
    return re.sub(r"\d+", "#", path)
