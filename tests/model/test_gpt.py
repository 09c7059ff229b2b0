"""The network against transformers' Gemma-2, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bafogpt.core.errors import ConfigError, DataError, UsageError
from bafogpt.model import attention, flex
from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import GPT

from .small_models import VOCABULARY, as_gemma, small, text

SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "a key a query": {"n_query_groups": 4},
    "one key for all": {"n_query_groups": 1},
    "another scale of the scores": {"attention_scores_scalar": 64},
    "heads wider than the stream": {"head_size": 32, "n_head": 2},
    "one layer": {"n_layer": 1},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_are_those_of_transformers_below_and_beyond_the_window(shape: dict[str, Any], tied: bool) -> None:
    ours = small(tied=tied, **shape).eval()
    theirs = as_gemma(ours)
    for tokens in (1, 15, 16, 17, 100):
        ids = text(2, tokens)
        with torch.no_grad():
            logits, expected = ours(ids), theirs(ids).logits
        assert expected.abs().max() > 2  # there is something to compare
        assert (logits - expected).abs().max() <= 1e-5


def test_gradients_are_those_of_transformers_beyond_the_window() -> None:
    ours = small()
    theirs = as_gemma(ours)
    ids = text(2, 60)
    ours(ids[:, :-1], ids[:, 1:]).backward()
    logits = theirs(ids[:, :-1]).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    pairs = {
        "model.embed_tokens.weight": ours.transformer.wte.weight,
        "model.layers.0.self_attn.o_proj.weight": ours.transformer.h[0].attn.proj.weight,
        "model.layers.1.mlp.gate_proj.weight": ours.transformer.h[1].mlp.fc_1.weight,
        "model.layers.3.input_layernorm.weight": ours.transformer.h[3].norm_1.weight,
    }
    for name, weight in pairs.items():
        expected = theirs.get_parameter(name).grad
        assert expected is not None
        assert (weight.grad - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("softcap", [50.0, 2.0])
def test_attention_in_chunks_has_the_gradients_of_attention_at_once(
    chunk: int, softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 4, 30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, 30, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(2, 4, 30, 8, generator=generator, dtype=torch.float64)
    mask = attention.hidden_keys(30, 0, 9, None, q.device)
    assert mask is not None
    scores = softcap * torch.tanh(q @ k.repeat_interleave(2, 1).mT * 0.4 / softcap)
    plain = torch.softmax(scores.masked_fill(mask, -torch.inf), -1) @ v.repeat_interleave(2, 1)
    ours = attention.attend(q, k, v, mask, scale=0.4, softcap=softcap)
    assert torch.allclose(ours, plain, atol=1e-6)
    expected = torch.autograd.grad((plain * weights).sum(), (q, k, v))
    found = torch.autograd.grad((ours * weights).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()  # the probabilities are float32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [None, 16])
def test_the_masks_of_flex_attention_are_the_same(window: int | None, documents: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, 150, 16, generator=generator)
    k, v = (torch.randn(2, 2, 150, 16, generator=generator) for _ in range(2))
    owner = torch.tensor([[0] * 40 + [1] * 110, [0] * 149 + [1]], dtype=torch.int32) if documents else None
    blocks = flex.flex_mask(150, window, documents=owner, device="cpu")
    plain = attention.hidden_keys(150, 0, window, owner, q.device)
    with torch.no_grad():
        a, b = (attention.attend(q, k, v, mask, scale=0.5, softcap=3.0) for mask in (blocks, plain))
    assert (a - b).abs().max() <= 1e-5


def test_packed_documents_do_not_see_each_other() -> None:
    model = small().eval()
    ids = text(1, 90)
    lengths = [1, 20, 17, 52]
    owner = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(lengths)).unsqueeze(0)
    with torch.no_grad():
        packed = model(ids, documents=owner)
        alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
        together = model(ids)
    assert (packed - alone).abs().max() <= 1e-5
    assert (together - alone).abs().max() > 0.1


def test_documents_may_differ_from_row_to_row_and_so_do_their_losses() -> None:
    model = small()
    ids = text(2, 40)
    owner = torch.tensor([[0] * 10 + [1] * 30, [0] * 33 + [1] * 7], dtype=torch.int32)
    targets = ids.roll(-1, 1)
    both = model(ids, targets, documents=owner)
    rows = [model(ids[i : i + 1], targets[i : i + 1], documents=owner[i : i + 1]) for i in range(2)]
    assert torch.allclose(both, rows[0] + rows[1], rtol=1e-6)


def test_a_model_without_soft_caps_and_windows_is_litgpts_own() -> None:
    import litgpt.model

    shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "intermediate_size": 64, "block_size": 64}
    for name in ("Llama-3.2-1B", "pythia-14m", "Qwen3-0.6B"):
        given = {key: value for key, value in shape.items() if name != "pythia-14m" or key != "n_query_groups"}
        config = gpt_config(name, given, VOCABULARY)
        theirs = litgpt.model.GPT(config).eval()
        ours = GPT(config).eval()
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            assert (ours(text(2, 40)) - theirs(text(2, 40))).abs().max() <= 1e-5, name


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(UsageError, match="513 tokens are more than the model's 512 positions"):
        small()(text(1, 513))


@pytest.mark.parametrize("wrong", [-1, 320])
def test_an_id_outside_the_vocabulary_is_refused(wrong: int) -> None:
    ids = text(1, 5)
    ids[0, 3] = wrong
    with pytest.raises(DataError, match=f"token {wrong} is outside the model's vocabulary of 320 ids"):
        small()(ids)
    with pytest.raises(DataError, match=f"target {wrong} is outside"):
        small()(text(1, 5), ids)


def test_what_the_network_is_not_made_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'Gemma-2-2b'"):
        gpt_config("Gemma-2-2B", {}, VOCABULARY)
    with pytest.raises(ConfigError, match="no field 'n_layers'"):
        gpt_config("Gemma-2-2b", {"n_layers": 3}, VOCABULARY)
    with pytest.raises(ConfigError, match="a bias at the output head"):
        gpt_config("phi-2", {}, VOCABULARY)


def test_the_norms_have_the_published_epsilon() -> None:
    config = gpt_config("Gemma-2-2b", {}, 256_001)
    assert (config.norm_eps, config.padded_vocab_size) == (1e-6, 256_064)
