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

from .lane import Lane, in_peace
from .place import Place
from .plan import Fallen, Kill, Layout, Outcome, Plan, Truth

T = TypeVar("T")
SMALL = Plan(steps=64, every=4)
LARGE = Plan(steps=24, every=8, floats=9 << 17)
"""Checkpoints of 9 MB, which are sent in parts."""
TORCH = Plan(steps=60, every=5, length=32, torch=True)
KILLS_A_RUN = 10
LARGE_EVERY = 6
"""Runs."""
MOMENT_S = 0.8
"""Longest wait before a kill at a random moment; a run left in peace takes between two and three seconds."""
IN_SAVE_SHARE = 0.2
"""Of the kills, so many at least must fall between the first write of a checkpoint and its commit."""
_TRAINERS_ASK = ("shard", "dataset")
_OF_SAVES = re.compile(r"checkpoints/|step-#|(PUT|POST|HEAD|GET) (marker|file|part|upload)$")
"""Points of a save, of its upload and of what is removed afterwards; two of three planned points are such."""


@dataclass
class Table:
    """What happened."""

    fallen: list[Fallen] = field(default_factory=list)
    missed: int = 0
    problems: list[str] = field(default_factory=list)
    runs: int = 0

    def add(self, outcome: Outcome) -> None:
        self.fallen += outcome.fallen
        self.missed += len(outcome.missed)
        self.problems += outcome.problems
        self.runs += 1

    @property
    def in_save(self) -> int:
        return sum(each.in_save for each in self.fallen)

    def verdict(self) -> list[str]:
        """What is wrong with all of it; an empty list is a pass."""
        wrong = list(self.problems)
        if self.in_save < IN_SAVE_SHARE * len(self.fallen):
            wrong.append(f"only {self.in_save} of {len(self.fallen)} kills fell into a save")
        return wrong

    def rows(self) -> list[dict[str, Any]]:
        """One a point: ``victim``, ``point``, ``kills``, ``in_save``."""
        kills = Counter((each.kill.victim, each.kill.point) for each in self.fallen)
        saves = Counter((each.kill.victim, each.kill.point) for each in self.fallen if each.in_save)
        return [
            {"victim": victim, "point": point, "kills": count, "in_save": saves[victim, point]}
            for (victim, point), count in sorted(kills.items())
        ]


@dataclass(frozen=True)
class Stage:
    """A training, how it ends in peace, and every point at which it can be killed."""

    name: str
    plan: Plan
    truth: Truth
    files: tuple[tuple[str, str, int], ...]
    """(process, label, how often)"""
    requests: tuple[tuple[str, int], ...]


class Campaign:
    """Kills until so many have happened: of trainers without torch, or of the real ones."""

    def __init__(self, seed: int, place: Place, *, torch: bool = False) -> None:
        self._seed = seed
        self._place = place
        self._torch = torch
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self.table = Table()

    def run(self, kills: int, lanes: int = 2, progress: Callable[[Table], None] = lambda _: None) -> Table:
        """Run after run, ``lanes`` at a time, until ``kills`` have happened or something was wrong."""
        numbers = iter(range(1 << 30))

        def one_lane() -> None:
            while True:
                with self._lock:
                    left = kills - len(self.table.fallen)
                    if left <= 0 or self.table.problems:
                        return
                    number = next(numbers)
                outcome = self._one(self._stage_of(number), number, min(left, KILLS_A_RUN))
                with self._lock:
                    self.table.add(outcome)
                    progress(self.table)

        with ThreadPoolExecutor(lanes) as pool:
            for each in [pool.submit(one_lane) for _ in range(lanes)]:
                each.result()
        return self.table

    def _one(self, stage: Stage, number: int, most: int) -> Outcome:
        kills = planned(self._seed, number, stage)[:most]
        with Lane(f"{stage.name}-{number:05d}", self._place, stage.plan) as lane:
            outcome = lane.run(kills, stage.truth)
        if outcome.problems:
            outcome.problems = [f"run {number} of seed {self._seed}: {each}" for each in outcome.problems]
            outcome.problems += [f"  after {each.kill}" for each in outcome.fallen]
        return outcome

    def _stage_of(self, number: int) -> Stage:
        name, plan = ("large", LARGE) if number % LARGE_EVERY == LARGE_EVERY - 1 else ("small", SMALL)
        if self._torch:
            name, plan = "torch", TORCH
        with self._making:
            if name not in self._stages:
                self._stages[name] = self._stage(name, plan)
            return self._stages[name]

    def _stage(self, name: str, plan: Plan) -> Stage:
        """One run in peace, and one that loses its trainer and then its machine, to learn all points."""
        truth = in_peace(self._place, plan, f"{name}-in-peace")
        trace = self._place.home / f"{name}.trace"
        kills = [
            Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2),
            Kill("machine", "request", "PUT marker", nth=1, stage="after"),
        ]
        with Lane(f"{name}-traced", self._place, plan, trace=trace) as lane:
            outcome = lane.run(kills, truth)
            assert not outcome.problems, outcome.problems
            assert len(outcome.fallen) == len(kills), outcome.missed
            requests = dict(lane.proxy.requests)
        files = Counter(tuple(line.split("\t")) for line in trace.read_text().splitlines())
        return Stage(
            name,
            plan,
            truth,
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
        layout = Layout(1 if stage.plan.torch else processes, chance.choice((1, 4)), chance.random() < 0.3)
        if (number + index) % 2:
            victim = chance.choice(("trainer", "trainer", "supervisor", "machine"))
            delay, rank = chance.uniform(0, MOMENT_S), chance.randrange(4)
            at_work = stage.plan.torch or chance.random() < 0.6  # torch takes seconds to load
            kills.append(Kill(victim, "moment", nth=rank, delay_s=delay, at_work=at_work, layout=layout))  # type: ignore[arg-type]
        elif chance.random() < 0.55:
            process, label, count = _one_of(stage.files, lambda each: each[1], chance, share)
            victim = process if process == "trainer" or chance.random() < 0.8 else "machine"
            kills.append(Kill(victim, "file", label, chance.randint(1, -(-count // 8)), layout=layout))  # type: ignore[arg-type]
        else:
            label, count = _one_of(stage.requests, lambda each: each[0], chance, share)
            stages = ("before", "half", "after") if label.startswith("PUT") else ("before", "after")
            victim = "supervisor" if chance.random() < 0.8 else "machine"
            if label.split()[-1] in _TRAINERS_ASK and label.startswith("GET"):
                victim = "trainer"
            nth = chance.randint(1, -(-count // 8))
            kills.append(Kill(victim, "request", label, nth, chance.choice(stages), layout=layout))  # type: ignore[arg-type]
    return kills


def _one_of(points: Sequence[T], label: Callable[[T], str], chance: random.Random, share: float) -> T:
    """A point; one of a save with probability ``share``."""
    of_saves = [each for each in points if _OF_SAVES.search(label(each))]
    return chance.choice(of_saves if of_saves and chance.random() < share else points)
