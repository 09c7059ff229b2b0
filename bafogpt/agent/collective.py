"""Tests the collectives of this machine: an all-reduce in separate processes, with a deadline."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bafogpt.agent.workers import Workers, describe_exit

COMMAND = (sys.executable, "-m", "bafogpt.train.probes.collective_check")
READY = "ready"
"""Printed by each process once torch is imported (:data:`bafogpt.train.probes.collective_check.READY`)."""
START_S = 120.0
"""How long importing torch from a cold disk may take, before the deadline begins: a slow disk is not a hang."""
POLL_S = 0.05
WITHOUT_P2P = {"NCCL_P2P_DISABLE": "1"}
"""NCCL then copies through host memory instead of from GPU to GPU (NCCL user guide, environment variables)."""

_RANK = re.compile(r"\[rank (\d+)\] (.*)")


@dataclass(frozen=True, kw_only=True)
class CollectiveResult:
    """How the all-reduce went."""

    failure: str = ""
    """Why it failed, with the last line of each rank; empty where it succeeded."""
    gb_per_s: float | None = None
    """Bus bandwidth, where it succeeded."""
    stopped: bool = False
    """Whether it was broken off because the run must end."""


def run(
    processes: int,
    device: Literal["cuda", "cpu"],
    folder: Path,
    *,
    timeout_s: float,
    log: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
) -> CollectiveResult:
    """Run an all-reduce over ``processes``, which must end ``timeout_s`` seconds after all have started.

    One process alone tests CUDA. Output goes to ``log`` only after a failure. No process is left when this returns.
    """
    output = _Output(processes)
    with Workers(folder, processes, output.add, [*command, device], environment=environment) as workers:
        failure = _wait(workers, output, timeout_s, stopped)
        if stopped():
            return CollectiveResult(stopped=True)
        codes = workers.exit_codes()
    if not failure and any(codes):
        failure = f"failed: {describe_exit(codes)} ({output.last_lines()})"
    if not failure:
        return CollectiveResult(gb_per_s=output.gb_per_s())
    for line in output.lines:
        log(line)
    what = f"an all-reduce over {processes} processes" if processes > 1 else "a first sum on the GPU"
    return CollectiveResult(failure=f"{what} {failure}")


def _wait(workers: Workers, output: _Output, timeout_s: float, stopped: Callable[[], bool]) -> str:
    """Wait until the processes end or the run is stopped; the failure where a deadline passes first."""
    deadline, verb, limit_s = time.monotonic() + START_S, "start", START_S
    while workers.running() and not stopped():
        time.sleep(POLL_S)
        if verb == "start" and output.all_ready():
            deadline, verb, limit_s = time.monotonic() + timeout_s, "end", timeout_s
        if time.monotonic() > deadline:
            failure = f"did not {verb} within {limit_s:g} s ({output.last_lines()})"
            workers.dump()
            return failure
    return ""


class _Output:
    """The processes' output, added line by line from one thread per process."""

    def __init__(self, processes: int) -> None:
        self.lines: list[str] = []
        self._of_rank: dict[int, list[str]] = {rank: [] for rank in range(processes)}

    def add(self, line: str) -> None:
        self.lines.append(line)
        match = _RANK.fullmatch(line)  # the lines of a single process carry no rank
        rank, text = (int(match[1]), match[2].strip()) if match else (0, line.strip())
        if text:
            self._of_rank[rank].append(text)

    def all_ready(self) -> bool:
        return all(READY in texts for texts in self._of_rank.values())

    def last_lines(self, limit: int = 100) -> str:
        last = {rank: texts[-1][:limit] if texts else "nothing" for rank, texts in self._of_rank.items()}
        return "; ".join(f"rank {rank} printed last: {text}" for rank, text in last.items())

    def gb_per_s(self) -> float | None:
        try:
            return float(json.loads(self._of_rank[0][-1])["gb_per_s"])
        except (ValueError, KeyError, TypeError, IndexError):
            return None
