"""NF4 with double quantisation, without a GPU: bitsandbytes' numbers, bits that stay, and a model that learns."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch

from bafogpt.model import lora, nf4
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.gpt import GPT
from bafogpt.model.nf4 import NF4Linear

from .small_models import small, text


def quantised(**overrides: Any) -> GPT:
    model = small(**overrides)
    nf4.quantise(model)
    return model


def test_every_matrix_in_the_blocks_is_quantised_and_nothing_else() -> None:
    model = small()
    assert nf4.quantise(model) == 5 * model.config.n_layer
    assert nf4.quantise(model) == 0, "once is enough"
    kinds = {name: type(module) for name, module in model.named_modules() if name.endswith((".wte", "lm_head"))}
    assert kinds == {"transformer.wte": torch.nn.Embedding, "lm_head": torch.nn.Linear}
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in small().named_parameters()}
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 128), (96, 48), (33, 65)])
def test_quantised_and_back_is_what_bitsandbytes_says(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    weight = linear.weight.detach().clone()
    ours = nf4.dequantised(NF4Linear.of(linear))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert state.nested, "the scales are quantised, too"
    expected = bitsandbytes.functional.dequantize_4bit(packed, state)
    assert ours.dtype == dtype
    assert torch.equal(ours, expected)
    assert 0 < (ours - weight).abs().max() < 0.2 * weight.abs().max()


def test_a_linear_map_computes_with_what_it_dequantises_to() -> None:
    torch.manual_seed(3)
    layer = NF4Linear.of(torch.nn.Linear(64, 32, bias=False))
    x = torch.randn(4, 7, 64, requires_grad=True)
    y = layer(x)
    assert torch.allclose(y, x @ nf4.dequantised(layer).T, atol=1e-5)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, nf4.dequantised(layer).sum(0).expand_as(x), atol=1e-4)


def test_the_frozen_bits_stay_through_training_and_evaluation() -> None:
    model = quantised()
    lora.add(model, model.config, AdapterConfig(), seed=1)
    before = {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
    ids = text(4, 32)
    losses = []
    for _ in range(8):
        loss = model.train()(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        with torch.no_grad():
            model.eval()(ids[:1])
    assert losses[-1] < 0.9 * losses[0]
    assert any(".qkv." in name for name in before)
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name


def test_a_quantised_model_survives_a_change_of_the_other_weights_dtype() -> None:
    model = quantised().to(torch.bfloat16)
    lora.add(model, model.config, AdapterConfig(), seed=1)
    ids = text(2, 16)
    loss = model.train()(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert torch.isfinite(loss)
    assert model.transformer.h[0].attn.qkv.base.weight.dtype == torch.uint8
    assert {each.grad.dtype for each in model.parameters() if each.grad is not None} <= {torch.bfloat16, torch.float32}
