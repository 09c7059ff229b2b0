"""fp8 in the blocks' linear layers, emulated on the CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd

from bafogpt.core.errors import ConfigError
from bafogpt.model.config import gpt_config
from bafogpt.model.formats.param_names import bare
from bafogpt.model.gpt import GPT, new_gpt
from bafogpt.train import float8, parallel
from bafogpt.train import run as runs
from bafogpt.train.config import TrainConfig
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder

from .conftest import Trained, assert_bit_equal, tensors, tiny
from .test_equality import Counting

Train = Callable[..., Trained]
aten = torch.ops.aten
RECIPES = ("tensorwise", "rowwise")
LINEAR_LAYERS = {"attn.qkv", "attn.proj", "mlp.fc_1", "mlp.fc_2", "mlp.proj"}


def network(config: TrainConfig) -> GPT:
    """The tiny model, with the blocks that the trainer would give it."""
    shape = gpt_config(config.model.network, config.model.overrides, 260)
    model = new_gpt(shape, tie_embeddings=True, seed=1)
    float8.convert(model, config, gpu=False)
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_blocks_linear_layers_multiply_in_fp8_and_no_parameter_is_renamed_or_changed(recipe: str) -> None:
    plain, model = network(tiny()), network(tiny(float8=recipe))
    found = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    assert found == {f"transformer.h.{layer}.{name}" for layer in range(2) for name in LINEAR_LAYERS}
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.transformer.wte.weight
    expected, same = dict(plain.named_parameters()), dict(model.named_parameters())
    assert_bit_equal(same, expected)


def backward(config: TrainConfig, *, compiled: bool) -> tuple[float, dict[str, torch.Tensor], Counter[Any]]:
    """Loss, gradients and the backward pass's operators, by torch's own scaled product, which the CPU has as well."""
    shape = gpt_config(config.model.network, config.model.overrides, 260)
    model = new_gpt(shape, tie_embeddings=True, seed=1).bfloat16()
    float8.convert(model, config, gpu=True)
    parallel.prepare_blocks(model, config, gpu=False)
    in_graphs: Counter[Any] = Counter()

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        in_graphs.update(node.target for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    if compiled:
        ways = {"fw_compiler": lambda graph, _: make_boxed_func(graph.forward), "bw_compiler": count}
        backend = aot_autograd(**ways, partition_fn=min_cut_rematerialization_partition)
        for block in model.transformer.h:
            block.compile(backend=backend)
    ids = torch.arange(64).reshape(2, 32) * 7 % 260
    loss = model(ids, ids.roll(-1, 1))
    with Counting() as counting:
        loss.backward()
    gradients = {bare(name): parameter.grad for name, parameter in model.named_parameters()}
    return loss.item(), gradients, in_graphs if compiled else counting.calls


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_selective_recomputation_repeats_no_product_in_fp8_and_gives_the_same_gradients(
    recipe: str, compiled: bool
) -> None:
    whole, kept, again = (
        backward(tiny(activation_checkpointing=how, float8=recipe), compiled=compiled)
        for how in ("none", "selective", "full")
    )
    for loss, gradients, _ in (kept, again):
        assert loss == whole[0]
        assert_bit_equal(gradients, whole[1])
    product = aten._scaled_mm.default if compiled else aten.mm.default
    assert whole[2][product] == kept[2][product] < again[2][product]
    if compiled:  # the scales of the forward pass are as many as those of the backward pass, and only full repeats them
        assert again[2][aten.max.default] == 2 * kept[2][aten.max.default]


def quiet(**over: Any) -> TrainConfig:
    """The tiny job in bf16, without validation and with a checkpoint at its end."""
    steps = over.pop("steps", 12)
    values = {"tokens": steps * 256, "precision": "bf16-mixed", "validation": {"every": 0}, "checkpoint": {"every": 6}}
    return tiny(**{**values, **over})


def test_a_run_in_fp8_differs_from_bf16_and_resumes_with_the_switch_on_or_off(train: Train) -> None:
    plain, whole = train(quiet()), train(quiet(float8="tensorwise"))
    assert whole.results[0].outcome == "finished", whole.output
    assert any("fp8 is emulated on this CPU" in line for line in whole.output)
    assert not any("fp8" in line for line in plain.output)
    assert all(whole.losses[step] != plain.losses[step] for step in whole.losses)
    assert whole.losses == pytest.approx(plain.losses, rel=2e-2)
    middle = whole.staged[0].folder
    same, off = train(quiet(float8="tensorwise"), resume=middle), train(quiet(), resume=middle)
    assert same.losses == {step: loss for step, loss in whole.losses.items() if step > 6}  # every bit
    assert off.results[0].outcome == "finished", off.output
    assert off.losses == pytest.approx(same.losses, rel=2e-2)
    saved, expected = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors(each.staged[-1]).items()}
        for each in (whole, plain)
    )
    assert saved == expected


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_500_further_steps_in_fp8_end_within_half_a_percent_of_the_loss_in_bf16(
    train: Train, train_once: Callable[[TrainConfig], Trained], recipe: str
) -> None:
    """Training goes on from step 500 of the same run in bf16, as continued pretraining does. From random weights the
    two can part by more (docs/benchmarks.md)."""
    config = quiet(
        tokens=1000 * 512,
        data={"sequence_length": 64},
        batch={"tokens": 512, "micro_batch_size": 8},
        model={"overrides": {"n_embd": 128, "n_head": 4, "n_query_groups": 2, "intermediate_size": 512}},
        optimizer={"learning_rate": 1e-3},
        checkpoint={"every": 500},
        guard={"spike_ratio": None},
    )
    whole = train_once(config)
    again = train(dataclasses.replace(config, float8=recipe), resume=whole.staged[0].folder)
    assert again.results[0].outcome == "finished", again.output
    losses, expected = ([each.losses[step] for step in range(501, 1001)] for each in (again, whole))
    assert losses != expected
    assert fmean(losses[-50:]) == pytest.approx(fmean(expected[-50:]), rel=0.005)
    assert fmean(losses) == pytest.approx(fmean(expected), rel=0.005)


def test_two_processes_in_fp8_learn_like_one(train: Train) -> None:
    one, two = (train(quiet(float8="tensorwise", precision="32-true"), processes=count) for count in (1, 2))
    assert [result.outcome for result in two.results] == ["finished", "finished"], two.output
    assert sum("fp8 is emulated" in line for line in two.output) == 1
    assert two.losses == pytest.approx(one.losses, rel=2e-3)  # a number may round to the next of the 256 there are


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        ((8, 6), "bf16-mixed", r"fp8 needs a GPU of compute capability 8\.9; this one has 8\.6"),
        ((8, 9), "32-true", "train.float8 on a GPU needs a bf16 precision, here is 32-true"),
        *((each, "bf16-mixed", None) for each in ((8, 9), (9, 0), (10, 0), (12, 0))),
    ],
)
def test_a_gpu_without_fp8_is_refused_before_anything_is_read(
    capability: tuple[int, int], precision: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    config = tiny(float8="tensorwise", precision=precision)
    if message is None:
        float8.check(config, gpu=True)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        runs.build_run(TrainOrder(bucket="s3://there-is-none", config=config, device="cuda"), TrainerFiles(tmp_path))
    assert caught.value.hint == "--set train.float8=none"


def test_without_torchao_the_hint_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchao, which is not installed") as caught:
        float8.check(tiny(float8="tensorwise"), gpu=False)
    assert caught.value.hint == "pip install 'bafogpt[gpu]'"
    float8.check(tiny(), gpu=False)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"adapter": {"r": 4}}, "float8 is tensorwise; with an adapter it must be none"),
        (
            {"data": {"sequence_length": 40}, "batch": {"tokens": 80}, "tokens": 80},
            "float8 needs a sequence_length that is a multiple of 16, not 40",
        ),
        ({"float8": "delayed"}, "expected one of none, tensorwise, rowwise"),
    ],
)
def test_a_job_that_cannot_be_trained_in_fp8_is_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**{"float8": "tensorwise", **over})


def test_a_layer_with_a_width_that_is_no_multiple_of_16_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 16; block layer 0\.mlp\.fc_1 is 64 x 100") as caught:
        network(tiny(float8="tensorwise", model={"overrides": {"intermediate_size": 100}}))
    assert caught.value.hint == "--set train.float8=none"
