"""The host never waits for the step it has launched: its numbers are read a step late, and before a checkpoint."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bafogpt.core.errors import BafoError
from bafogpt.train import loop
from bafogpt.train.batches import Batch
from bafogpt.train.metrics import MetricsLog, StepMetrics
from bafogpt.train.run import TrainRun
from bafogpt.train.step import train_step
from bafogpt.train.step_logger import StepLogger
from bafogpt.train.trainer_io import TrainerFiles, WorkerResult, checkpoint_step

from .conftest import tiny

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
"""Operators whose result the host waits for."""
ON_THE_HOST_ANYWAY = ("/torch/optim/", "in _require_ids")
"""AdamW's step count, which is on the host, and a check of ids that only a CPU does."""


class NothingIsRead(TorchDispatchMode):
    """Fails where a tensor's value comes to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            stack = "".join(traceback.format_stack())
            assert any(each in stack for each in ON_THE_HOST_ANYWAY), f"{func} waits for the device\n{stack[-1500:]}"
        return func(*args, **(kwargs or {}))


Train = Callable[..., WorkerResult]
Alter = Callable[[int, StepMetrics], StepMetrics]


@pytest.fixture
def trainer_files(tmp_path: Path) -> TrainerFiles:
    return TrainerFiles(tmp_path / "trainer")


@pytest.fixture
def train(
    train_here: Callable[..., WorkerResult], trainer_files: TrainerFiles, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """``train(alter, **config)``: the real loop in this process, with what each step measured changed by ``alter``."""

    def run(alter: Alter = lambda step, measured: measured, **over: Any) -> WorkerResult:
        def altered(run: TrainRun, micros: Sequence[Batch]) -> StepMetrics:
            measured = train_step(run, micros)
            return alter(run.state.progress.step, measured)

        monkeypatch.setattr(loop, "train_step", altered)
        return train_here(tiny(tokens=6 * 256, validation={"every": 0}, **over), trainer_files)

    return run


def steps_told(trainer_files: TrainerFiles) -> list[int]:
    return [json.loads(line)["step"] for line in trainer_files.metrics(1).read_text().splitlines()]


def test_a_step_is_launched_before_the_last_ones_numbers_are_read(
    train: Train, trainer_files: TrainerFiles, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    ask, write = StepLogger.step, MetricsLog.write

    def given(step: int, measured: StepMetrics) -> StepMetrics:
        told.append(f"given {step}")
        return measured

    def asked(log: StepLogger, measured: StepMetrics) -> None:
        with NothingIsRead():
            ask(log, measured)

    def written(lines: MetricsLog, **values: Any) -> None:
        told.append(f"line {values['step']}")
        write(lines, **values)

    monkeypatch.setattr(StepLogger, "step", asked)
    monkeypatch.setattr(MetricsLog, "write", written)
    assert train(given, checkpoint={"every": 4}).outcome == "finished"
    expected = "given 1, given 2, line 1, given 3, line 2, given 4, line 3, line 4, given 5, given 6, line 5, line 6"
    assert told == expected.split(", ")  # at step 4 a checkpoint is due, at step 6 the end


def test_no_operator_within_a_step_waits_for_a_value(train: Train, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    given: list[int] = []

    def within(run: TrainRun, micros: Sequence[Batch]) -> StepMetrics:
        with monkeypatch.context() as patch, NothingIsRead():
            for name in ("cpu", "numpy", "tolist"):  # ways to the host that no operator shows
                patch.setattr(torch.Tensor, name, lambda *_, name=name: read.append(name))
            measured = original(run, micros)
        given.append(run.state.progress.step)
        return measured

    original = train_step
    monkeypatch.setitem(globals(), "train_step", within)
    train(checkpoint={"every": 6})
    assert given == [1, 2, 3, 4, 5, 6]
    assert read == []


@pytest.mark.parametrize(("bad", "kept"), [(4, [2]), (5, [2, 4])])
def test_a_step_with_a_bad_loss_is_in_no_checkpoint_and_its_samples_are_named(
    train: Train, trainer_files: TrainerFiles, bad: int, kept: list[int]
):
    """A checkpoint is due at step 4, and at step 6, when the numbers of step 5 are still on their way."""

    def spoilt(step: int, measured: StepMetrics) -> StepMetrics:
        return replace(measured, loss=measured.loss * float("nan")) if step == bad else measured

    with pytest.raises(BafoError, match=rf"loss nan, .* at step {bad} .*samples {8 * bad - 8} to {8 * bad - 1}; the"):
        train(spoilt, checkpoint={"every": 2})
    assert steps_told(trainer_files) == list(range(1, bad))
    assert [checkpoint_step(folder) for folder in trainer_files.pending()] == kept


def test_lines_of_every_second_step_are_read_at_the_next_step(train: Train, trainer_files: TrainerFiles):
    seen: list[int] = []

    def look(step: int, measured: StepMetrics) -> StepMetrics:
        seen.append(len(steps_told(trainer_files)))
        return measured

    train(look, log_every=2, checkpoint={"every": 6})
    assert steps_told(trainer_files) == [2, 4, 6]
    assert seen == [0, 0, 0, 1, 1, 2]  # when step k was given; the line of step 2 is written at step 3
