"""Settings for GPUs that can be tested without one: gathering, compilation, memory, empty weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from bafogpt.agent import workers
from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import empty_gpt, materialise, new_gpt
from bafogpt.train import learner, parallel
from bafogpt.train.trainer_io import TrainerFiles, WorkerResult, read_staged

from .conftest import Trained, assert_bit_equal, tensors, tiny

Train = Callable[..., Trained]

COUNT = """
import json, sys, torch.distributed as dist
from dataclasses import asdict
from bafogpt.core import schema
from bafogpt.train.probes.step_probe import Trial, steps

calls = {"all_gather_single": 0, "reduce_scatter_single": 0}
for name in calls:
    def counted(*words, _name=name, _call=getattr(dist, name), **options):
        calls[_name] += 1
        return _call(*words, **options)
    setattr(dist, name, counted)
made = steps(schema.build(Trial, json.load(sys.stdin), where="trial"))
next(made)
for name in calls:
    calls[name] = 0
learner = next(made)
print(json.dumps({**calls, "groups": len(learner.state.model.transformer.h) + 1}), flush=True)
import os
os._exit(0)
"""


def collectives(sharding: str, *, micro_batches: int) -> dict[str, int]:
    """How often a step of four processes gathers parameters and exchanges gradients, and the groups of parameters."""
    config = tiny(batch={"tokens": 4 * micro_batches * 32, "micro_batch_size": 1})
    network = asdict(gpt_config(config.model.network, config.model.overrides, 256))
    trial = {"config": asdict(config), "network": network, "micro_batch": 1, "sharding": sharding, "device": "cpu"}
    ranks = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        input=json.dumps(trial),
        env={**os.environ, **ranks, **meeting},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("sharding", "gathers", "exchanges"), [("step", 3, 3), ("pass", 15, 3), ("full", 15, 9)])
def test_sharding_decides_how_often_parameters_are_gathered_and_gradients_exchanged(
    sharding: str, gathers: int, exchanges: int
) -> None:
    """Of three groups: two blocks, and the rest, which stays gathered between forward and backward pass."""
    found = collectives(sharding, micro_batches=3)

    assert found == {"all_gather_single": gathers, "reduce_scatter_single": exchanges, "groups": 3}


def test_a_block_that_is_compiled_too_often_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    model: Any = SimpleNamespace(transformer=SimpleNamespace(h=nn.ModuleList([Block()])))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", False)
    parallel.prepare_blocks(model, tiny(), gpu=False)
    block = model.transformer.h[0]
    block.compile(backend="eager", dynamic=False)

    try:
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            for rows in range(1, 20):
                block(torch.zeros(rows, 4))
    finally:
        torch._dynamo.reset()


def test_trainers_use_expandable_segments_unless_the_environment_sets_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def allocator() -> str | None:
        return workers._environment(1, workers.RankLayout()).get("PYTORCH_ALLOC_CONF")

    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert allocator() == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    assert allocator() == "backend:native"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert allocator() is None


def test_a_resume_draws_no_random_weights(
    train_here: Callable[..., WorkerResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TrainerFiles(tmp_path / "first"), TrainerFiles(tmp_path / "second")
    train_here(tiny(), first)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are being drawn")

    monkeypatch.setattr(learner, "new_gpt", never)
    assert train_here(tiny(), second, resume=first.pending()[0]).outcome == "finished"

    assert_bit_equal(*(tensors(read_staged(each.pending()[-1])) for each in (first, second)))


@pytest.mark.parametrize("tied", [True, False])
def test_an_empty_model_equals_one_with_weights_once_they_are_loaded(tied: bool) -> None:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_query_groups": 1, "head_size": 16, "intermediate_size": 64}
    shape = gpt_config("Gemma-2-2b", sizes, 256)
    drawn, empty = new_gpt(shape, tie_embeddings=tied, seed=3), empty_gpt(shape, tie_embeddings=tied)
    assert all(parameter.is_meta for parameter in empty.parameters())

    materialise(empty, torch.device("cpu"))
    empty.load_state_dict(drawn.state_dict())

    assert (empty.lm_head.weight is empty.transformer.wte.weight) == tied
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(empty(ids), drawn(ids))


@pytest.mark.parametrize("name", ["Gemma-2-2b", "Gemma-3-1b-it"])
def test_layers_of_two_kinds_are_compiled_once_a_kind(name: str) -> None:
    """Twelve layers, more than the limit of variants: none may be told apart by its number."""
    sizes = {"n_layer": 12, "n_embd": 32, "n_head": 2, "n_query_groups": 1, "head_size": 16, "intermediate_size": 64}
    kinds = [int(layer % 6 != 5) for layer in range(12)]
    if name.startswith("Gemma-3"):
        sizes |= {"sliding_window_indices": kinds, "rope_indices": kinds}  # type: ignore[dict-item]
    gpt = new_gpt(gpt_config(name, {**sizes, "sliding_window_size": 8}, 256), tie_embeddings=True, seed=1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with mock.patch.object(torch._dynamo.config, "fail_on_recompile_limit_hit", True):
        for block in gpt.transformer.h:
            block.compile(backend="eager", dynamic=False)
        ids = torch.arange(32).view(2, 16)
        gpt(ids, ids).backward()
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_in_bf16_has_the_same_losses(train: Train, processes: int) -> None:
    config = tiny(precision="bf16-true")
    whole = train(config, processes=processes)
    half = next(each.folder for each in whole.staged if each.step == 6)

    resumed = train(config, processes=processes, resume=half)

    assert list(resumed.losses) == [7, 8, 9, 10, 11, 12]
    assert resumed.losses == {step: loss for step, loss in whole.losses.items() if step > 6}
