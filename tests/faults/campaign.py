"""Many runs under planned kills, side by side, and the table of what was killed where.

Half of the kills come at random moments, half right before a named file operation or at a named stage of a request.
Which those can be is not written down anywhere: a run that is killed and restored is traced first, and every point it
passes is one. The plan of a run follows from the seed and the run's number alone.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .bench import Bench
from .plan import DoneKill, Kill, Plan, Reference, RunResult, StartOptions
from .run_under_test import RunUnderTest, undisturbed

T = TypeVar("T")
SMALL = Plan(steps=64, every=4)
LARGE = Plan(steps=24, every=8, floats=9 << 17)
"""Checkpoints of 9 MB, which are sent in parts."""
TORCH = Plan(steps=60, every=5, length=32, torch=True)
KILLS_A_RUN = 10
LARGE_EVERY = 6
"""Runs."""
MOMENT_S = 0.8
"""Longest wait before a kill at a random moment; a run left undisturbed takes between two and three seconds."""
IN_SAVE_SHARE = 0.2
"""Of the kills, so many at least must fall between the first write of a checkpoint and its commit."""
_TRAINERS_ASK = ("shard", "dataset")
_OF_SAVES = re.compile(r"checkpoints/|step-#|(PUT|POST|HEAD|GET) (marker|file|part|upload)$")
"""Points of a save, of its upload and of what is removed afterwards; two of three planned points are such."""


@dataclass
class Table:
    """What happened."""

    done_kills: list[DoneKill] = field(default_factory=list)
    missed: int = 0
    problems: list[str] = field(default_factory=list)
    runs: int = 0

    def add(self, result: RunResult) -> None:
        self.done_kills += result.done_kills
        self.missed += len(result.missed)
        self.problems += result.problems
        self.runs += 1

    @property
    def in_save(self) -> int:
        return sum(each.in_save for each in self.done_kills)

    def verdict(self) -> list[str]:
        """What is wrong with all of it; an empty list is a pass."""
        wrong = list(self.problems)
        if self.in_save < IN_SAVE_SHARE * len(self.done_kills):
            wrong.append(f"only {self.in_save} of {len(self.done_kills)} kills fell into a save")
        return wrong

    def rows(self) -> list[dict[str, Any]]:
        """One a point: ``victim``, ``point``, ``kills``, ``in_save``."""
        kills = Counter((each.kill.victim, each.kill.point) for each in self.done_kills)
        saves = Counter((each.kill.victim, each.kill.point) for each in self.done_kills if each.in_save)
        return [
            {"victim": victim, "point": point, "kills": count, "in_save": saves[victim, point]}
            for (victim, point), count in sorted(kills.items())
        ]


@dataclass(frozen=True)
class Stage:
    """A training, how it ends undisturbed, and every point at which it can be killed."""

    name: str
    plan: Plan
    reference: Reference
    files: tuple[tuple[str, str, int], ...]
    """(process, label, how often)"""
    requests: tuple[tuple[str, int], ...]


class Campaign:
    """Kills until so many have happened: of trainers without torch, or of the real ones."""

    def __init__(self, seed: int, bench: Bench, *, torch: bool = False) -> None:
        self._seed = seed
        self._bench = bench
        self._torch = torch
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self.table = Table()

    def run(self, kills: int, parallel: int = 2, progress: Callable[[Table], None] = lambda _: None) -> Table:
        """Run after run, ``parallel`` at a time, until ``kills`` have happened or something was wrong."""
        numbers = iter(range(1 << 30))

        def run_some() -> None:
            while True:
                with self._lock:
                    left = kills - len(self.table.done_kills)
                    if left <= 0 or self.table.problems:
                        return
                    number = next(numbers)
                result = self._one(self._stage_of(number), number, min(left, KILLS_A_RUN))
                with self._lock:
                    self.table.add(result)
                    progress(self.table)

        with ThreadPoolExecutor(parallel) as pool:
            for each in [pool.submit(run_some) for _ in range(parallel)]:
                each.result()
        return self.table

    def _one(self, stage: Stage, number: int, most: int) -> RunResult:
        kills = planned(self._seed, number, stage)[:most]
        with RunUnderTest(f"{stage.name}-{number:05d}", self._bench, stage.plan) as tested:
            result = tested.run(kills, stage.reference)
        if result.problems:
            result.problems = [f"run {number} of seed {self._seed}: {each}" for each in result.problems]
            result.problems += [f"  after {each.kill}" for each in result.done_kills]
        return result

    def _stage_of(self, number: int) -> Stage:
        name, plan = ("large", LARGE) if number % LARGE_EVERY == LARGE_EVERY - 1 else ("small", SMALL)
        if self._torch:
            name, plan = "torch", TORCH
        with self._making:
            if name not in self._stages:
                self._stages[name] = self._stage(name, plan)
            return self._stages[name]

    def _stage(self, name: str, plan: Plan) -> Stage:
        """One run undisturbed, and one that loses its trainer and then its machine, to learn all points."""
        reference = undisturbed(self._bench, plan, f"{name}-undisturbed")
        trace = self._bench.home / f"{name}.trace"
        kills = [
            Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2),
            Kill("machine", "request", "PUT marker", nth=1, stage="after"),
        ]
        with RunUnderTest(f"{name}-traced", self._bench, plan, trace=trace) as tested:
            result = tested.run(kills, reference)
            assert not result.problems, result.problems
            assert len(result.done_kills) == len(kills), result.missed
            requests = dict(tested.proxy.requests)
        files = Counter(tuple(line.split("\t")) for line in trace.read_text().splitlines())
        return Stage(
            name,
            plan,
            reference,
            tuple(sorted((process, label, count) for (process, label), count in files.items())),
            tuple(sorted(requests.items())),
        )


def planned(seed: int, number: int, stage: Stage) -> list[Kill]:
    """The kills of one run: moments and points in turn."""
    chance = random.Random(f"{seed} {number}")
    share = 1.0 if stage.plan.torch else 2 / 3  # a point that comes once, at the end, costs a whole run
    kills = []
    for index in range(KILLS_A_RUN):
        processes = chance.choice((1, 1, 1, 2, 4))
        options = StartOptions(1 if stage.plan.torch else processes, chance.choice((1, 4)), chance.random() < 0.3)
        if (number + index) % 2:
            victim = chance.choice(("trainer", "trainer", "supervisor", "machine"))
            delay, rank = chance.uniform(0, MOMENT_S), chance.randrange(4)
            at_work = stage.plan.torch or chance.random() < 0.6  # torch takes seconds to load
            kills.append(Kill(victim, "moment", nth=rank, delay_s=delay, at_work=at_work, options=options))  # type: ignore[arg-type]
        elif chance.random() < 0.55:
            process, label, count = _one_of(stage.files, lambda each: each[1], chance, share)
            victim = process if process == "trainer" or chance.random() < 0.8 else "machine"
            kills.append(Kill(victim, "file", label, chance.randint(1, -(-count // 8)), options=options))  # type: ignore[arg-type]
        else:
            label, count = _one_of(stage.requests, lambda each: each[0], chance, share)
            stages = ("before", "half", "after") if label.startswith("PUT") else ("before", "after")
            victim = "supervisor" if chance.random() < 0.8 else "machine"
            if label.split()[-1] in _TRAINERS_ASK and label.startswith("GET"):
                victim = "trainer"
            nth = chance.randint(1, -(-count // 8))
            kills.append(Kill(victim, "request", label, nth, chance.choice(stages), options=options))  # type: ignore[arg-type]
    return kills


def _one_of(points: Sequence[T], label: Callable[[T], str], chance: random.Random, share: float) -> T:
    """A point; one of a save with probability ``share``."""
    of_saves = [each for each in points if _OF_SAVES.search(label(each))]
    return chance.choice(of_saves if of_saves and chance.random() < share else points)
