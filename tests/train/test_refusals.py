"""Jobs that are refused before they start, and runs that stop because of their loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bafogpt.core.errors import BafoError, ConfigError
from bafogpt.model.config import gpt_config
from bafogpt.storage.tokens.manifest import Packing, Split, Stage
from bafogpt.train import learner, memory_check, metrics, parallel
from bafogpt.train.metrics import StepMetrics
from bafogpt.train.state import TrainProgress, _refuse_difference
from bafogpt.train.step_logger import StepLogger
from bafogpt.train.trainer_io import TrainerFiles, WorkerResult

from .conftest import tiny


def shape(**over: Any) -> Any:
    config = tiny()
    return gpt_config(config.model.network, {**config.model.overrides, **over}, 260)


def test_a_dataset_packed_into_samples_of_another_length():
    with pytest.raises(ConfigError, match="was packed into samples of 64 tokens"):
        memory_check.check_packing(Packing(64, "plain", ""), tiny())


def test_a_micro_batch_that_cannot_fit_is_refused_with_its_estimate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "device_bytes", lambda _: 6_000_000)
    with pytest.raises(ConfigError, match=r"a micro-batch of 8 needs some .* GB a process .*and 0\.0 GB") as caught:
        memory_check.choose_micro_batch(shape(), tiny(batch={"micro_batch_size": 8}), gpu=False)
    assert caught.value.hint == "--set train.batch.micro_batch_size=0 finds the largest that fits"
    micro_batch, _ = memory_check.choose_micro_batch(shape(), tiny(batch={"micro_batch_size": 0}), gpu=False)
    assert 1 <= micro_batch < 8  # and it does


def test_a_checkpoint_with_another_vocabulary_has_a_hint_to_expand():
    with pytest.raises(ConfigError, match=r"model\.padded_vocab_size is 256000 there and 296000 here") as caught:
        _refuse_difference({"padded_vocab_size": 256_000}, {"padded_vocab_size": 296_000}, Path("step-00000001"))
    assert "bafogpt model expand" in (caught.value.hint or "")


def test_a_loss_spike_stops_the_run_and_names_its_samples():
    config, progress = tiny(guard={"after_steps": 3}), TrainProgress()
    split = Split(10_000, 1, (), (Stage("news", 0, 10_000, 1, {"x": 10_000}),))
    fabric: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1, all_reduce=lambda value, reduce_op: value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "peak_flops", lambda *_: 1.0)
        log = StepLogger(config, fabric, progress, curriculum=split, lines=None, flops_per_token=1.0)

    def step(loss: float) -> None:
        progress.advance(8, 256)
        log.step(StepMetrics(torch.tensor(loss), torch.tensor(1.0), 0.1, 256))
        log.flush()

    for loss in (2.0, 9.0, 2.0, 2.0, 6.0):  # the second comes before the mean is trusted; the last is a harder stage
        step(loss)
    mean = progress.loss_mean
    with pytest.raises(BafoError, match=r"at step 6 \(news\), samples 40 to 47 is over 2 x the running mean"):
        step(3 * mean)
    assert progress.loss_mean == mean  # what is wrong is not taken in
    with pytest.raises(BafoError, match=r"loss nan, .* at step 7 \(news\), samples 48 to 55; the last checkpoint is"):
        step(float("nan"))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"model": {"overrides": {"block_size": 16}}}, "sequence_length is 32, and Gemma-2-2b knows 16 positions"),
        ({"batch": {"tokens": 512, "micro_batch_size": 16}}, r"a micro-batch of 16 needs some .* GB a process"),
        (
            {"data": {"sequence_length": 2**16}, "batch": {"tokens": 2**16, "micro_batch_size": 1}, "tokens": 2**16},
            r"holds \d+ tokens for validation, less than one sample of 65536",
        ),
        ({"batch": {"tokens": 32, "micro_batch_size": 1}}, "a step has 1 samples, fewer than the 4 processes"),
        (
            {"batch": {"tokens": 32 * 6, "micro_batch_size": 1}},
            "a batch of 6 samples does not divide among 4 processes",
        ),
    ],
)
def test_the_trainer_refuses_a_job_before_it_builds_a_model(
    train_here: Callable[..., WorkerResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    over: dict[str, Any],
    message: str,
):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is being made")

    monkeypatch.setattr(learner, "new_gpt", never)
    if "processes" in message:
        monkeypatch.setenv("WORLD_SIZE", "4")
    if "micro-batch" in message:
        monkeypatch.setattr(parallel, "device_bytes", lambda _: 6_000_000)
    with pytest.raises(ConfigError, match=message) as caught:
        train_here(tiny(**over), TrainerFiles(tmp_path))
    assert caught.value.hint


def test_weights_with_nan_stop_at_the_first_step_and_nothing_is_saved(
    train_here: Callable[..., WorkerResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make = learner.new_gpt

    def broken(*args: Any, **options: Any) -> Any:
        model = make(*args, **options)
        model.lm_head.weight.data[0, 0] = float("nan")
        return model

    monkeypatch.setattr(learner, "new_gpt", broken)
    trainer_files = TrainerFiles(tmp_path)
    with pytest.raises(BafoError, match=r"loss nan, .* at step 1 \(dictionary\), samples 0 to 7; the last checkpoint"):
        train_here(tiny(checkpoint={"every": 1}), trainer_files)
    assert trainer_files.pending() == []
