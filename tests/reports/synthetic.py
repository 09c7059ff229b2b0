"""A run's records as a supervisor would have left them, without training anything."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bafogpt.reports import summary as summaries
from bafogpt.reports import terminal
from bafogpt.reports.summary import Summary
from bafogpt.runs import usage
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.runs.usage import AttemptUsage
from bafogpt.storage.bucket import Bucket

NAME = "zulu-smoke-3f2a"
BEGIN = 1_770_000_000.0
BATCH_SAMPLES, SEQUENCE_LENGTH = 16, 128


@dataclass
class SyntheticRun:
    """Writes down a run bit by bit; ``clock`` is the time of the next record, seconds since the epoch."""

    store: RunStore
    folder: Path
    attempt: int = 1
    clock: float = BEGIN
    step_s: float = 1.0
    steps: int = 120

    def event(self, kind: str, **values: Any) -> None:
        self._append("events", {"time": self.clock, "attempt": self.attempt, "event": kind, **values})

    def metrics(self, **values: Any) -> None:
        self._append("metrics", {"time": self.clock, **values})

    def begin(self) -> None:
        self.event("run_started", host="node-1", processes=1)

    def start(self, step: int) -> None:
        """Trainers that go on from a step."""
        if step:
            self.event("checkpoint_restored", step=step, samples=step * BATCH_SAMPLES)
        self.event("trainers_started", step=step, restart=0)
        self.clock += 4.0

    def train(self, first: int, last: int) -> None:
        """Steps ``first`` to ``last``; a validation and a checkpoint every 20."""
        for step in range(first, last + 1):
            self.clock += self.step_s
            self.metrics(
                step=step,
                samples=[(step - 1) * BATCH_SAMPLES, step * BATCH_SAMPLES],
                tokens=step * BATCH_SAMPLES * SEQUENCE_LENGTH,
                stage=("simple" if step <= 40 else "general" if step <= 85 else "replay & hard"),
                loss=3.0 + 2.6 * math.exp(-step / 22) + 0.05 * math.sin(step * 2.7),
                learning_rate=3e-3 * min(1.0, step / 10) * (0.55 + 0.45 * math.cos(math.pi * step / self.steps)),
                gradient_norm=1.0,
                tokens_per_s=2048 / self.step_s * (0.6 if step == first else 1 + 0.04 * math.sin(step * 1.3)),
                mfu=0.31 * (0.6 if step == first else 1 + 0.04 * math.sin(step * 1.3)),
                seconds=step * self.step_s,
            )
            if step % 20 == 0:
                self.metrics(step=step, validation_loss=3.06 + 2.7 * math.exp(-step / 24), validation_samples=32)
                self.clock += 0.9
                self.event("checkpoint_committed", step=step, samples=step * 16, bytes=13_112_000, seconds=0.62)

    def end(self, state: str, message: str = "") -> None:
        self.clock += 2.0
        self.event("run_ended", state=state, message=message)
        self.account()

    def account(self, started: float = BEGIN, hours: float | None = None, price: float = 1.2) -> None:
        """The account of this attempt, until now or of so many hours."""
        seen = self.clock if hours is None else started + 3600 * hours
        span = AttemptUsage(attempt=self.attempt, started=started, seen=seen, price_per_hour=price)
        usage.write(self.store.folder(NAME), span)

    def save(self, **changes: Any) -> None:
        """The run's record."""
        values: dict[str, Any] = {
            "name": NAME,
            "trainer": "pretrain",
            "state": "succeeded",
            "created": "2026-02-02T02:40:00.000+00:00",
            "updated": "",
            "steps": self.steps,
            "step": self.steps,
            "infra": "runpod",
            "host": "node-1",
            "price_per_hour": 1.2,
            "job": {"trainer": "pretrain", "train": {"tokens": 245_760, "data": {"path": "data/starter"}}},
            "git": "0123456789abcdef0123456789abcdef01234567+dirty",
            "versions": {"bafogpt": "0.1.0", "python": "3.11.9"},
        }
        self.store.save(RunRecord(**(values | changes)))

    def checkpoint(self, step: int) -> None:
        """A checkpoint that is in the bucket."""
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"\1" * (1000 + step))
        store = self.store.checkpoints(NAME)
        store.upload(folder, step=step, samples=step * 16, upload_id="u", metadata={"attempt": self.attempt})

    def _append(self, feed: str, line: dict[str, Any]) -> None:
        path = self.folder / f"{feed}-{self.attempt:04d}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.store.folder(NAME).put(f"{feed}/{self.attempt:04d}-00000.jsonl", path.read_bytes())


def new(folder: Path) -> SyntheticRun:
    """A run in a bucket below ``folder`` of which nothing has been written."""
    (folder / "bucket").mkdir(parents=True)
    return SyntheticRun(RunStore(Bucket.open(f"file://{folder}/bucket")), folder)


def drilled(folder: Path) -> SyntheticRun:
    """120 steps on one machine, killed after step 51 and resumed from the checkpoint of step 40."""
    run = new(folder)
    run.begin()
    run.start(0)
    run.train(1, 50)
    run.event("drill_kill", step=50)
    run.train(51, 51)
    run.clock += 0.1
    run.event("trainers_died", exit_codes=[-9], why="rank 0 was killed by SIGKILL")
    run.clock += 0.5
    run.start(40)
    run.train(41, 120)
    run.end("succeeded")
    for step in (100, 120):
        run.checkpoint(step)
    run.save(restarts=1)
    return run


def summarise(run: SyntheticRun) -> Summary:
    """What the report makes of it."""
    return summaries.summarise(run.store, NAME)


def plain(summary: Summary, **options: Any) -> str:
    """The terminal's text where there is no terminal."""
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal.summary_text(summary, **options), soft_wrap=True)
    return captured.get()
