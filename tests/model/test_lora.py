"""LoRA: on what was asked for and nothing else, and PEFT computes the same from what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from bafogpt.core.errors import BafoError, ConfigError, CorruptError, NotFoundError
from bafogpt.model import adapter as adapters
from bafogpt.model import lora
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import GPT

from .small_models import as_gemma, small, text

EVERYTHING = tuple(adapters.TARGETS)


def adapted(config: AdapterConfig, seed: int = 1, trained: bool = True, **overrides: Any) -> GPT:
    """A small model with an adapter; a trained one's pairs are all random, so that they do something."""
    model = small(seed, **overrides)
    lora.add(model, model.config, config, seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in lora.tensors(model).values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def places(model: GPT) -> set[str]:
    return {name.rpartition(".lora.")[0].split(".", 3)[-1] for name in lora.tensors(model)}


def test_by_default_it_sits_on_query_key_value_and_projection_and_only_pairs_are_trained() -> None:
    model = adapted(AdapterConfig(base="as-is"))
    parts = {name.split(".lora.")[1].rpartition(".")[0] for name in lora.tensors(model)}
    assert parts == {"query", "key", "value", "projection"}
    assert places(model) == {"attn.qkv", "attn.proj"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(lora.tensors(model))
    assert len(trained) == 4 * 2 * model.config.n_layer


@pytest.mark.parametrize(
    ("targets", "by_hand"),
    [
        # a layer: query 2304→2048, key and value 2304→1024 each, projection 2048→2304; 26 layers
        (adapters.ATTENTION, 26 * 16 * ((2304 + 2048) + 2 * (2304 + 1024) + (2048 + 2304))),
        (("query", "value"), 26 * 16 * ((2304 + 2048) + (2304 + 1024))),
        (("mlp",), 26 * 16 * 3 * (2304 + 9216)),
        (("head",), 16 * (2304 + 256_000)),
        (("embedding",), 16 * (2304 + 256_000)),
    ],
)
def test_gemma_2_2b_has_as_many_trained_weights_as_a_hand_counts(targets: tuple[str, ...], by_hand: int) -> None:
    config = gpt_config("Gemma-2-2b", {}, 256_000)
    with torch.device("meta"):
        model = GPT(config)
        lora.add(model, config, AdapterConfig(r=16, targets=targets), seed=0)
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == by_hand
    if targets == adapters.ATTENTION:
        assert by_hand == 6_389_760


@pytest.mark.parametrize("targets", [adapters.ATTENTION, EVERYTHING])
def test_a_new_adapter_changes_nothing(targets: tuple[str, ...]) -> None:
    ids = text(2, 24)
    plain, fresh = small().eval(), adapted(AdapterConfig(targets=targets), trained=False)
    with torch.no_grad():
        assert torch.equal(plain(ids), fresh(ids))


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    one, again = (lora.tensors(adapted(AdapterConfig(), trained=False)) for _ in range(2))
    torch.manual_seed(99)
    assert all(torch.equal(one[name], again[name]) for name in one)
    before = torch.random.get_rng_state()
    adapted(AdapterConfig(), trained=False)
    assert torch.equal(before, torch.random.get_rng_state())


def train(model: GPT, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for step in range(steps):
        torch.manual_seed(step)
        ids = text(2, 24, seed=step)
        model.train()(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("targets", [adapters.ATTENTION, EVERYTHING])
def test_training_leaves_the_base_as_it_was_bit_by_bit_and_every_pair_learns(targets: tuple[str, ...]) -> None:
    model = adapted(AdapterConfig(targets=targets, dropout=0.1, neftune=5.0), trained=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora." not in name), name


@pytest.mark.parametrize("targets", [adapters.ATTENTION, ("query", "value"), ("key",), EVERYTHING])
def test_the_deltas_added_to_the_base_are_the_model_with_the_adapter(targets: tuple[str, ...]) -> None:
    model, merged = adapted(AdapterConfig(targets=targets), tied=False), small(tied=False).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, lora.LoraLinear | lora.LoraEmbedding):
                merged.get_parameter(f"{name}.weight").add_(module.delta())
        ids = text(2, 24)
        assert (model(ids) - merged(ids)).abs().max() < 1e-4
        assert (model(ids) - small(tied=False).eval()(ids)).abs().max() > 0.1
        loss, expected = model(ids[:, :-1], ids[:, 1:]), merged(ids[:, :-1], ids[:, 1:])
        assert abs(float(loss - expected)) < 1e-3


def test_dropout_and_noise_are_for_training_alone_and_come_again_with_the_seed() -> None:
    model, ids = adapted(AdapterConfig(dropout=0.5, neftune=10.0)), text(2, 24)

    def loss(seed: int, config: AdapterConfig | None = None) -> float:
        torch.manual_seed(seed)
        return float((model if config is None else adapted(config).train())(ids[:, :-1], ids[:, 1:]))

    assert loss(1) == loss(2), "in evaluation nothing is drawn"
    model.train()
    assert loss(1) == loss(1) != loss(2)
    for part in (AdapterConfig(dropout=0.5), AdapterConfig(dropout=0.0, neftune=10.0)):
        assert loss(1, part) == loss(1, part) != loss(2, part)


def test_the_noise_is_as_large_as_neftune_says() -> None:
    model = adapted(AdapterConfig(dropout=0.0, neftune=4.0))
    embedding: Any = model.transformer.wte
    ids = text(2, 50)
    quiet = embedding(ids)
    noise = embedding.train()(ids) - quiet
    most = 4.0 / (50 * model.config.n_embd) ** 0.5
    assert 0.95 * most < noise.abs().max() <= most * 1.001


@pytest.mark.parametrize("targets", [adapters.ATTENTION, ("query", "mlp"), EVERYTHING])
def test_peft_loads_the_export_and_computes_the_same(targets: tuple[str, ...], tmp_path: Path) -> None:
    import peft

    config = AdapterConfig(r=4, alpha=6, targets=targets)
    tied = "head" not in targets and "embedding" not in targets
    model = adapted(config, tied=tied)
    lora.save(tmp_path / "a", lora.tensors(model), config, model.config, base="google/gemma-2-2b")
    base = as_gemma(small(tied=tied))
    ids = text(2, 24)
    with torch.no_grad():
        plain = base(ids).logits
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
        found = theirs(ids).logits
        assert (model(ids) - found).abs().max() <= 1e-4
        assert (plain - found).abs().max() > 0.1


def test_an_exported_adapter_comes_back_bit_by_bit(tmp_path: Path) -> None:
    config = AdapterConfig(r=4, targets=EVERYTHING, dropout=0.0)
    model = adapted(config)
    digest = lora.base_digest(small())
    lora.save(tmp_path / "a", lora.tensors(model), config, model.config, base="x", base_digest=digest)
    again = small()
    assert lora.load(tmp_path / "a", again, again.config) == config
    for name, tensor in lora.tensors(model).items():
        assert torch.equal(tensor, lora.tensors(again)[name])


@pytest.mark.parametrize("targets", [adapters.ATTENTION, EVERYTHING])
def test_an_adapter_that_is_loaded_into_a_model_that_evaluates_drops_nothing(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    config = AdapterConfig(r=4, targets=targets, dropout=0.9)
    tied = "head" not in targets
    made = adapted(config, tied=tied)
    lora.save(tmp_path / "a", lora.tensors(made), config, made.config, base="x")
    ids, model = text(1, 24), small(tied=tied).eval()
    lora.load(tmp_path / "a", model, model.config)
    assert [name for name, module in model.named_modules() if module.training] == []
    with torch.no_grad():
        assert torch.equal(model(ids), model(ids))
        assert torch.allclose(model(ids), made.eval()(ids), atol=1e-5)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    config = AdapterConfig(r=4)
    model = adapted(config)
    digest = lora.base_digest(small())
    lora.save(tmp_path / "a", lora.tensors(model), config, model.config, base="x", base_digest=digest)
    return tmp_path / "a"


def edit(folder: Path, **values: Any) -> None:
    content = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps({**content, **values}))


def refused(folder: Path, kind: type[BafoError], says: str, model: GPT | None = None) -> None:
    model = model or small()
    with pytest.raises(kind, match=says) as caught:
        lora.load(folder, model, model.config)
    assert caught.value.hint
    assert lora.tensors(model) == {}, "the network is as it was"


def test_an_adapter_for_another_base_is_refused(exported: Path) -> None:
    refused(exported, ConfigError, "another base: the same sizes, other weights", small(seed=2))
    refused(exported, ConfigError, "another base: a model of 4 layers, width 48", small(n_layer=3))
    refused(exported, ConfigError, "another base: a model of 4 layers, width 48", small(n_embd=64))


def test_half_an_adapter_is_refused(exported: Path) -> None:
    weights, config = exported / adapters.WEIGHTS, exported / adapters.CONFIG
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(exported, CorruptError, "half an adapter")
    weights.unlink()
    refused(exported, CorruptError, "half an adapter")
    weights.write_bytes(whole)
    edit(exported, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"])
    refused(exported, CorruptError, "has no base_model.model.lm_head.lora_A.weight")
    config.write_text("{")
    refused(exported, CorruptError, "not JSON")
    config.unlink()
    refused(exported, CorruptError, "has no adapter_config.json")
    weights.unlink()
    refused(exported, NotFoundError, "is no adapter")


def test_an_adapter_of_another_kind_or_on_unknown_modules_is_refused(exported: Path) -> None:
    edit(exported, target_modules=["q_prj"])
    refused(exported, ConfigError, "no target module 'q_prj' .did you mean 'q_proj'")
    edit(exported, target_modules=["gate_proj"])
    refused(exported, ConfigError, "of the MLP some modules are missing")
    edit(exported, peft_type="LOHA")
    refused(exported, ConfigError, "not plain LoRA")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"targets": ("querry",)}, "no target module 'querry' .did you mean 'query'"),
        ({"targets": ()}, "targets are empty"),
        ({"targets": ("query", "query")}, "name one twice"),
        ({"r": 0}, "r is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"neftune": -1.0}, "neftune is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdapterConfig(**values)


def test_the_pairs_of_the_fused_matrix_are_what_three_separate_ones_would_be() -> None:
    config = AdapterConfig(r=3, targets=("query", "value"))
    model = adapted(config)
    attention: Any = model.transformer.h[0].attn
    x = torch.randn(2, 5, model.config.n_embd)
    q, _, v = 64, 32, 32
    added = attention.qkv(x) - attention.qkv.base(x)
    for name, rows in (("query", slice(0, q)), ("value", slice(q + v, None))):
        pair = attention.qkv.lora[name]
        expected = functional.linear(functional.linear(x, pair.A), pair.B) * config.scaling
        assert torch.allclose(added[..., rows], expected, atol=1e-5)
    assert not added[..., q : q + v].any()
