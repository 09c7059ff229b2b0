"""Recomputation, the number of processes and repetition do not change the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import new_gpt
from bafogpt.train import loop, parallel
from bafogpt.train.trainer_io import TrainerFiles, WorkerResult, read_staged

from .conftest import Trained, assert_bit_equal, tensors, tiny

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


class Counting(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def recomputed(how: str) -> tuple[float, dict[str, torch.Tensor], Counter[Any]]:
    """Loss, gradients, and what ran in the backward pass of a tiny model."""
    config = tiny(activation_checkpointing=how)
    shape = gpt_config(config.model.network, config.model.overrides, 260)
    model = new_gpt(shape, tie_embeddings=True, seed=1)
    parallel.prepare_blocks(model, config, gpu=False)
    ids = torch.arange(64).reshape(2, 32) * 7 % 260
    loss = model(ids, ids.roll(-1, 1))
    with Counting() as counting:
        loss.backward()
    gradients = {
        name.replace("_checkpoint_wrapped_module.", ""): parameter.grad for name, parameter in model.named_parameters()
    }
    return loss.item(), gradients, counting.calls


def test_recomputation_gives_the_same_loss_and_gradients():
    whole, gradients, ran = recomputed("none")
    products = sum(ran[each] for each in PRODUCTS)
    for how, gelus, more_products in (("selective", 2, 0), ("full", 2, 1)):
        loss, same, again = recomputed(how)
        assert loss == whole
        assert_bit_equal(same, gradients)
        assert again[aten.gelu.default] == gelus  # in each of two blocks, what is cheap
        assert (sum(again[each] for each in PRODUCTS) > products) == more_products
    assert ran[aten.gelu.default] == 0


def test_new_rows_with_their_own_rate_are_the_same_on_one_and_two_processes(train: Callable[..., Trained]):
    """The new rows begin within the first process's part of the matrix: it has some of them, the second all."""
    optimizer = {"new_rows_factor": 4.0, "first_new_row": 100}
    quiet = {"tokens": 6 * 256, "validation": {"every": 0}, "checkpoint": {"every": 6}}
    one = train(tiny(optimizer=optimizer, **quiet)).losses
    two = train(tiny(optimizer=optimizer, **quiet), processes=2).losses
    plain = train(tiny(**quiet)).losses
    assert two == pytest.approx(one, rel=1e-5)
    assert max(abs(one[step] - plain[step]) for step in one) > 1e-3  # and they do something


def test_deterministic_runs_are_bit_equal(
    train_here: Callable[..., WorkerResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []
    step = loop.train_step

    def looked_at(*given: Any) -> Any:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return step(*given)

    monkeypatch.setattr(loop, "train_step", looked_at)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def trained(name: str, **over: Any) -> dict[str, torch.Tensor]:
        trainer_files = TrainerFiles(tmp_path / name)
        train_here(tiny(tokens=4 * 256, validation={"every": 0}, checkpoint={"every": 4}, **over), trainer_files)
        return tensors(read_staged(trainer_files.pending()[0]))

    try:
        first, second = (trained(name, deterministic=True) for name in ("first", "second"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked == [True] * 8  # on a GPU it is this that makes them so
    assert_bit_equal(first, second)
    other = trained("other", seed=2)
    assert [name for name in first if not torch.equal(first[name], other[name])] != []
