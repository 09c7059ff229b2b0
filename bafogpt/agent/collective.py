"""An all-reduce among the processes of this machine, in processes of its own, with a deadline."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bafogpt.agent.workers import Workers, describe_exit

COMMAND = (sys.executable, "-m", "bafogpt.train.probes.collective_check")
READY = "ready"
"""What each process prints once torch is imported (:data:`bafogpt.train.probes.collective_check.READY`)."""
START_S = 120.0
"""How long importing torch from a cold disk may take. It is not part of the deadline: a slow disk is not a hang."""
POLL_S = 0.05
WITHOUT_P2P = {"NCCL_P2P_DISABLE": "1"}
"""NCCL then copies through the host's memory instead of from GPU to GPU (NCCL user guide, environment variables)."""

_RANK = re.compile(r"\[rank (\d+)\] (.*)")


@dataclass(frozen=True, kw_only=True)
class CollectiveResult:
    """How the all-reduce went."""

    failure: str = ""
    """What went wrong, with the last line of each rank; empty where nothing did."""
    gb_per_s: float | None = None
    """Bus bandwidth, where it went well."""
    stopped: bool = False
    """Whether it was broken off because the run is to end."""


def run(
    processes: int,
    device: Literal["cuda", "cpu"],
    folder: Path,
    *,
    timeout_s: float,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
) -> CollectiveResult:
    """One all-reduce over ``processes``, which must end ``timeout_s`` seconds after all have started.

    One process alone shows that CUDA works.

    The lines of the processes go to ``say`` only where it fails. No process is left when this returns.
    """
    output = _Output(processes)
    trainers = Workers(folder, processes, output.add, [*command, device], environment=environment or {})
    failure = ""
    started, ready_at = time.monotonic(), None
    try:
        while trainers.running():
            time.sleep(POLL_S)
            now = time.monotonic()
            if stopped():
                return CollectiveResult(stopped=True)
            if ready_at is None and output.all_ready():
                ready_at = now
            if now > (started + START_S if ready_at is None else ready_at + timeout_s):
                limit = START_S if ready_at is None else timeout_s
                failure = f"did not {'start' if ready_at is None else 'end'} within {limit:g} s ({output.last_lines()})"
                trainers.dump()
                break
        codes = trainers.exit_codes()
    finally:
        trainers.end()
    if not failure and any(codes):
        failure = f"failed: {describe_exit(codes)} ({output.last_lines()})"
    if not failure:
        return CollectiveResult(gb_per_s=output.gb_per_s())
    for line in output.lines:
        say(line)
    what = f"an all-reduce over {processes} processes" if processes > 1 else "a first sum on the GPU"
    return CollectiveResult(failure=f"{what} {failure}")


class _Output:
    """What the processes print, line by line, from a thread of each."""

    def __init__(self, processes: int) -> None:
        self.lines: list[str] = []
        self._last = dict.fromkeys(range(processes), "nothing")
        self._ready: set[int] = set()
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        with self._lock:
            self.lines.append(line)
            match = _RANK.fullmatch(line)  # one process alone has no number before its lines
            rank, text = (int(match[1]), match[2].strip()) if match else (0, line.strip())
            if text:
                self._last[rank] = text
                if text == READY:
                    self._ready.add(rank)

    def all_ready(self) -> bool:
        return len(self._ready) == len(self._last)

    def last_lines(self, limit: int = 100) -> str:
        with self._lock:
            return "; ".join(f"rank {rank} last said: {text[:limit]}" for rank, text in self._last.items())

    def gb_per_s(self) -> float | None:
        try:
            return float(json.loads(self._last[0])["gb_per_s"])
        except (ValueError, KeyError, TypeError):
            return None
