"""Parts one after the other, each in a process of its own, a JSON line for each. No torch here.

A line has ``part``, ``ok`` (true, false, or null where it was skipped), ``seconds``, ``device`` and ``found``. Where it
is red, ``red`` names the findings that made it so, or ``error`` has the reason and the last lines of the part's output.
``skipped`` says why a part was left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bafogpt.core import process
from benchmarks.gpu_check.report import DONE, Options

ROOT = Path(__file__).parents[2]
LAST_S = 5.0
"""Seconds that a part which only looks at earlier lines has even when none are left."""
LAST_LINES = 15
"""Of a part's output that a red line quotes."""
ENVIRONMENT = {
    **{"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "gpu-check"},
    **{"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"},
    # compiled Python of torch and the project: an image that cannot be written to compiles it again in each process
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "bafogpt-gpu-check-pyc"),
}
"""What the supervisor would set for a job of one process."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that is checked."""

    name: str
    function: str
    """``module:function``; the function is called with a :class:`~benchmarks.gpu_check.report.Report`."""
    usual: float
    """Seconds that it is expected to take: it is skipped where fewer are left."""
    limit: float
    """Seconds after which it is killed."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""


def run(
    parts: Sequence[Part], *, options: Options, seconds: float, say: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run ``parts`` within ``seconds``, calling ``say`` with each line as soon as there is one. Returns all lines."""
    began, lines = time.monotonic(), list[dict[str, Any]]()
    line: dict[str, Any]
    for part in parts:
        left = max(LAST_S, seconds - (time.monotonic() - began))
        if left < part.usual:
            reason = f"{left:.0f} s are left, it usually takes {part.usual:.0f}"
            line = {"part": part.name, "ok": None, "seconds": 0.0, "device": None, "found": {}, "skipped": reason}
        else:
            line = run_part(part, options=options, seconds=min(left, part.limit), earlier=lines)
        line["device"] = line["device"] or (lines[-1]["device"] if lines else None)
        lines.append(line)
        say(line)
    return lines


def run_part(
    part: Part, *, options: Options, seconds: float, earlier: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The line of one part, whatever happens to its process. It ends, with all that it started, after ``seconds``."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        task = {
            "function": part.function,
            "arguments": dict(part.arguments),
            "seconds": seconds,
            "options": asdict(options),
            "earlier": list(earlier),
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        (folder / "found.jsonl").touch()
        ended = _ended(folder, seconds, options)
        line = _line(part.name, ended, folder)
    line["seconds"] = round(time.monotonic() - began, 1)
    return line


def _ended(folder: Path, seconds: float, options: Options) -> str:
    """Run ``part.py`` on ``folder``. Returns why it failed, in words; empty where it did not."""
    with (folder / "output.txt").open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check.part", str(folder)],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, **(ONE_THREAD if options.tiny else {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=process.die_with_parent(),
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:.0f} s: killed"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # with the compiler processes that it started
            child.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else ""


def _line(name: str, ended: str, folder: Path) -> dict[str, Any]:
    found, red, device, done = dict[str, Any](), list[str](), None, False
    for text in (folder / "found.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that was cut off by a kill
            entry = json.loads(text)
            device, done = entry.get("device", device), done or DONE in entry
            if "name" in entry:
                found[entry["name"]] = entry["value"]
                red += [] if entry["ok"] else [entry["name"]]
    error = ended or ("" if done else "ended early, with exit code 0")
    line: dict[str, Any] = {"part": name, "ok": not red and not error, "seconds": 0.0, "device": device, "found": found}
    if red:
        line["red"] = red
    if error:
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        line["error"] = [error, *(each[:300] for each in output[-LAST_LINES:])]
    return line
