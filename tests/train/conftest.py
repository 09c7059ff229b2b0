"""Real trainers on a real stream: a small dataset in the session's bucket, and a way to run trainer processes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bafogpt.agent.workers import Workers
from bafogpt.core import schema
from bafogpt.jobs import job as jobs
from bafogpt.storage.bucket import Bucket
from bafogpt.train.config import TrainConfig
from bafogpt.train.trainer_io import (
    StagedCheckpoint,
    StopFlag,
    TrainerFiles,
    TrainOrder,
    WorkerResult,
    checkpoint_step,
    read_staged,
)

ROOT = Path(__file__).parents[2]
TINY = {
    "tokens": 12 * 256,
    "data": {"path": "data/starter", "sequence_length": 32},
    "model": {"overrides": {"n_layer": 2, "n_embd": 64, "n_head": 2, "head_size": 32, "intermediate_size": 128}},
    "batch": {"tokens": 256, "micro_batch_size": 2},
    "validation": {"every": 6, "samples": 8},
    "checkpoint": {"every": 6, "max_pending": 99},
}


def tiny(**over: Any) -> TrainConfig:
    """The demo's job cut down to 12 steps of a model of 0.1 M parameters."""
    demo = schema.to_dict(jobs.load(ROOT / "jobs" / "demo.yaml").train)
    return schema.build(TrainConfig, schema.merge(schema.merge(demo, TINY), over), where="test")


@dataclass(frozen=True)
class Trained:
    """What a trainer left."""

    results: list[WorkerResult]
    lines: list[dict[str, Any]]
    staged: list[StagedCheckpoint]
    output: list[str]

    @property
    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.lines if "loss" in line}


def tensors(checkpoint: StagedCheckpoint) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a one-process checkpoint."""
    (file,) = checkpoint.folder.glob("*.safetensors")
    return load_file(file)


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def kill_after(step: int, number: int = signal.SIGKILL) -> Callable[[Workers, TrainerFiles], None]:
    """A ``watch`` that sends the trainers a signal, once, when the metrics have that step."""
    sent: list[int] = []

    def watch(trainers: Workers, trainer_files: TrainerFiles) -> None:
        path = trainer_files.metrics(1)
        if not sent and path.exists() and f'"step": {step},' in path.read_text():
            sent.append(step)
            trainers.signal(number)

    return watch


@pytest.fixture
def order(
    starter: Bucket, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[TrainerFiles, TrainConfig, Path | None], None]:
    """``order(trainer_files, config, resume)``: write an order, and set the bucket's environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)

    def write(trainer_files: TrainerFiles, config: TrainConfig, resume: Path | None) -> None:
        step = None
        if resume is not None:
            step = checkpoint_step(resume)
            shutil.copytree(resume, trainer_files.resume / resume.name)
        trainer_files.write_order(TrainOrder(bucket=starter.url, config=config, resume_step=step))

    return write


@pytest.fixture
def train(order: Callable[..., None], tmp_path: Path) -> Callable[..., Trained]:
    """``train(config, processes=1, resume=CHECKPOINT, watch=f)``: real worker processes, to their end."""
    count = iter(range(100))

    def run(
        config: TrainConfig,
        processes: int = 1,
        resume: Path | None = None,
        watch: Callable[[Workers, TrainerFiles], None] = lambda *_: None,
        folder: Path | None = None,
    ) -> Trained:
        trainer_files = TrainerFiles(folder or tmp_path / f"trainer-{next(count)}")
        order(trainer_files, config, resume)
        output: list[str] = []
        trainers = Workers(trainer_files.folder, processes, output.append)
        while trainers.running():
            watch(trainers, trainer_files)
            time.sleep(0.01)
        trainers.end()
        path = trainer_files.metrics(1)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return Trained(
            trainer_files.read_results(), lines, [read_staged(folder) for folder in trainer_files.pending()], output
        )

    return run


@pytest.fixture(scope="session")
def finished_runs() -> dict[str, Trained]:
    return {}


@pytest.fixture
def train_once(train: Callable[..., Trained], finished_runs: dict[str, Trained]) -> Callable[[TrainConfig], Trained]:
    """``train_once(config)``: the uninterrupted run of a job, made once a session."""

    def run(config: TrainConfig) -> Trained:
        if repr(config) not in finished_runs:
            finished_runs[repr(config)] = train(config)
        return finished_runs[repr(config)]

    return run


@pytest.fixture
def train_here(order: Callable[..., None]) -> Callable[..., WorkerResult]:
    """``train_here(config, trainer_files, resume=CHECKPOINT)``: the real loop in this process."""
    from bafogpt.train import loop

    def run(config: TrainConfig, trainer_files: TrainerFiles, resume: Path | None = None) -> WorkerResult:
        order(trainer_files, config, resume)
        return loop.train(trainer_files.read_order(), trainer_files, StopFlag())

    return run
