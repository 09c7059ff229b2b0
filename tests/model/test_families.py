"""Every family's folders against transformers: logits, both ways, and values that someone has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, CorruptError
from bafogpt.model.cache import KVCache
from bafogpt.model.config import gpt_config
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats import hf_config
from bafogpt.model.formats.families import FAMILIES, NAMES, configuration, family_of
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.gpt import load_gpt
from tests.published import PUBLISHED, load, make, save
from tests.talking import make_model

from .small_models import logits_of, text

TOKENS = 100
"""Six windows of the small models."""


def change(path: Path, **values: Any) -> None:
    """Set fields of a folder's config.json; None takes one out."""
    file = path / "config.json"
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@torch.no_grad()
def cached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] with the cache: a prompt, then token after token."""
    cache = KVCache(model.config, ids.size(1))
    parts = [ids[:, :10], *ids[:, 10:].split(1, dim=1)]
    return torch.cat([model(part, cache=cache) for part in parts], dim=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_shape_has_the_logits_of_transformers_and_goes_back(name: str, tmp_path: Path) -> None:
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs")
    folder = ModelFolder.open(tmp_path / "theirs")
    ours = load_gpt(folder)
    ids = text(2, TOKENS)
    expected = logits_of(theirs, ids)
    assert expected.abs().max() > 2  # there is something to compare
    for tokens in (1, 15, 16, 17, TOKENS):
        assert (logits_of(ours, ids[:, :tokens]) - expected[:, :tokens]).abs().max() <= 1e-4, tokens
    assert (cached(ours, ids) - expected).abs().max() <= 1e-4

    back = folders.save(tmp_path / "back", ours, folder.config)

    assert back.config == folder.config
    assert (logits_of(load(back.path), ids) - expected).abs().max() <= 1e-4


def four(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma-3's ropes as transformers 4 writes them."""
    kinds = config["rope_parameters"]
    scaled = kinds["full_attention"].get("factor")
    return {
        "rope_parameters": None,
        "rope_theta": kinds["full_attention"]["rope_theta"],
        "rope_local_base_freq": kinds["sliding_attention"]["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": scaled} if scaled else None,
    }


@pytest.mark.parametrize("name", ["gemma-3-1b", "gemma-3-4b"])
def test_gemma_3_is_read_as_transformers_4_and_as_transformers_5_write_it(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "folder", name)
    new = ModelFolder.open(path).config
    change(path, **four(json.loads((path / "config.json").read_text())))

    old = ModelFolder.open(path).config

    assert old == new
    assert (old.rope_base, old.rope_local_base_freq) == (1_000_000, 10_000)
    assert old.rope_adjustments == ({"factor": 8.0} if name == "gemma-3-4b" else None)
    written = hf_config.from_litgpt(old, tie_embeddings=True, dtype="float32")
    only_4 = {key: value for key, value in written.items() if key != "rope_parameters"}
    only_5 = {key: value for key, value in written.items() if key not in four(written) or key == "rope_parameters"}
    assert hf_config.to_litgpt(only_4, "4") == hf_config.to_litgpt(only_5, "5") == old


Values = dict[str, Any]
GEMMA_3 = "gemma-3-270m"
FULL, LOCAL = "full_attention", "sliding_attention"


def ropes(full: Values | None = None, local: Values | None = None) -> Values:
    default = {"rope_type": "default"}
    return {
        "rope_parameters": {
            FULL: {**default, "rope_theta": 1e6, **(full or {})},
            LOCAL: {**default, "rope_theta": 1e4, **(local or {})},
        }
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (GEMMA_3, {"sliding_window": 24}),
        (GEMMA_3, {"layer_types": [FULL, *[LOCAL] * 6]}),
        (GEMMA_3, {"layer_types": None, "sliding_window_pattern": 3, "_sliding_window_pattern": None}),
        (GEMMA_3, ropes({"rope_theta": 500.5})),
        (GEMMA_3, ropes(local={"rope_theta": 3.0})),
        (GEMMA_3, ropes({"rope_type": "linear", "factor": 4.0})),
        (GEMMA_3, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (GEMMA_3, {"query_pre_attn_scalar": 64}),
        (GEMMA_3, {"final_logit_softcapping": 2.0}),
        (GEMMA_3, {"rms_norm_eps": 0.1}),
        ("gemma-2-2b", {"sliding_window": 3}),
        ("gemma-2-2b", {"layer_types": [FULL] * 7}),
        ("gemma-2-2b", {"layer_types": [LOCAL] * 7, "sliding_window": 5}),
        ("gemma-2-2b", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
        ("gemma-2-2b", {"rope_parameters": {"rope_type": "linear", "factor": 16.0, "rope_theta": 1e4}}),
        ("gemma-2-2b", {"final_logit_softcapping": 1.0}),
        ("qwen3-0.6b", {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}),
        ("qwen3-0.6b", {"rms_norm_eps": 0.1}),
    ],
)
def test_a_changed_value_is_computed_as_transformers_does(name: str, values: Values, tmp_path: Path) -> None:
    path = save(tmp_path / "folder", name)
    ids = text(2, TOKENS)
    before = logits_of(load_gpt(ModelFolder.open(path)), ids)
    change(path, **values)

    ours = logits_of(load_gpt(ModelFolder.open(path)), ids)

    assert (ours - before).abs().max() > 1e-2  # the value has an effect
    assert (ours - logits_of(load(path), ids)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (GEMMA_3, {"model_type": "gemma3", "text_config": {}}, "only its text model (gemma3_text) can be read"),
        (GEMMA_3, {"layer_types": [LOCAL] * 6}, "layer_types do not name 7 layers"),
        (GEMMA_3, {"layer_types": ["chunked_attention", *[LOCAL] * 6]}, "layer_types do not name 7 layers"),
        (GEMMA_3, {"sliding_window": 0}, "sliding_window is 0"),
        (GEMMA_3, {"sliding_window": "16"}, "sliding_window is '16'"),
        (GEMMA_3, {"layer_types": None, "sliding_window_pattern": 0}, "pattern is 0"),
        (GEMMA_3, {"layer_types": None, "_sliding_window_pattern": 4}, "pattern is 4"),
        (GEMMA_3, ropes({"rope_type": "yarn", "factor": 4.0}), "'yarn'"),
        (GEMMA_3, ropes({"factor": 4.0}), "with 'factor'"),
        (GEMMA_3, ropes({"rope_type": "linear", "factor": 0}), "factor is 0"),
        (GEMMA_3, ropes({"rope_type": "linear"}), "factor is None"),
        (GEMMA_3, ropes({"rope_theta": -1.0}), "rope_theta is -1.0"),
        (
            GEMMA_3,
            ropes(local={"rope_type": "linear", "factor": 4.0}),
            "scaled rotary positions in layers with a window",
        ),
        (GEMMA_3, {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, "has 'rope_theta'"),
        (GEMMA_3, {"rope_parameters": [1.0]}, "not an object"),
        (GEMMA_3, {"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0"),
        (GEMMA_3, {"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar is '256'"),
        (GEMMA_3, {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        (GEMMA_3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (GEMMA_3, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA_3, {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        (GEMMA_3, {"tie_word_embeddings": False}, "has no lm_head.weight"),
        (GEMMA_3, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (GEMMA_3, {"model_type": "gemma2", "rope_parameters": None}, "which Gemma-2 has not"),
        (
            "gemma-2-2b",
            {"model_type": "gemma3_text", "rope_parameters": None, "attn_logit_softcapping": None},
            "has no model.layers.0.self_attn.q_norm.weight",
        ),
        ("gemma-2-2b", {"model_type": "llama"}, "model_type is 'llama'; only Gemma-2, Gemma-3, Qwen-3 can be read"),
        ("gemma-2-2b", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma-2-2b", {"vocab_size": "many"}, "vocab_size is 'many'"),
        ("gemma-2-2b", {"vocab_size": 384}, "model.embed_tokens.weight is 320 × 72, config.json makes it 384 × 72"),
        ("gemma-2-2b", {"num_key_value_heads": 3}, "does not make a model"),
        ("gemma-2-2b", {"num_hidden_layers": 4}, "layer_types do not name 4 layers"),
        ("qwen3-0.6b", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3-0.6b", {"layer_types": [LOCAL] * 7}, "layer_types do not name 7 layers"),
        ("qwen3-0.6b", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen3-0.6b", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3-0.6b", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name: str, values: Values, words: str, tmp_path: Path) -> None:
    path = save(tmp_path / "folder", name)
    ModelFolder.open(path)
    change(path, **values)

    with pytest.raises(ConfigError) as error:
        ModelFolder.open(path)

    assert words in error.value.message and error.value.hint


def without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.3.self_attn.q_norm.weight"]


def another_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def another_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.k_norm.weight"] = torch.ones(128)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without, "has no model.layers.3.self_attn.q_norm.weight"),
        (another_head, "tie_word_embeddings is true, and lm_head.weight is not model.embed_tokens.weight"),
        (another_norm, "k_norm.weight is 128, config.json makes it 256"),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(
    spoil: Callable[[dict[str, torch.Tensor]], None], words: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "folder", GEMMA_3)
    tensors = load_file(path / "model.safetensors")
    spoil(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError) as error:
        ModelFolder.open(path)

    assert words in error.value.message


def test_a_tied_folder_may_have_the_same_head_twice(tmp_path: Path) -> None:
    path = save(tmp_path / "folder", GEMMA_3)
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path / "model.safetensors")

    assert ModelFolder.open(path).tied


@pytest.mark.parametrize("layers", [3, 12, 30])
def test_a_gemma_3_of_other_depth_keeps_its_windows_and_ropes(layers: int) -> None:
    config = gpt_config("Gemma-3-1b-it", {"n_layer": layers}, 256)

    expected = [0 if layer in (5, 11, 17, 23, 29) else 1 for layer in range(layers)]
    assert config.sliding_window_indices == config.rope_indices == expected
    assert (config.rope_local_base_freq, config.norm_eps) == (10_000, 1e-6)
    assert gpt_config("Gemma-2-2b", {"n_layer": 5}, 256).sliding_window_indices == [1, 0, 1, 0, 1]


def test_a_model_of_270_million_is_known_by_its_name() -> None:
    published = {  # google/gemma-3-270m
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
    }

    config = hf_config.to_litgpt(published, "config.json")

    assert config.name == "Gemma-3-270m"
    named = gpt_config("Gemma-3-270m", {}, 262_144)
    named.padding_multiple = config.padding_multiple
    assert config == named


def test_every_published_name_of_a_family_is_of_that_family() -> None:
    found = {name: family_of(configuration(name)) for name in NAMES}
    for family in FAMILIES:
        own = [name for name, each in found.items() if each is family]
        assert own and all(name.startswith(family.known) for name in own), family.title
    assert found["Qwen3-30B-A3B"] is None  # a mixture of experts is another network


def test_a_network_that_no_config_json_describes_is_not_written() -> None:
    own_ropes = gpt_config("Gemma-3-1b-it", {"n_layer": 2, "rope_indices": [0, 1]}, 256)
    half_rotated = gpt_config("Gemma-2-2b", {"n_layer": 2, "rotary_percentage": 0.5}, 256)
    with pytest.raises(ConfigError, match="are not the same"):
        hf_config.from_litgpt(own_ropes, tie_embeddings=True, dtype="float32")
    with pytest.raises(ConfigError, match="of no family that can be written"):
        hf_config.from_litgpt(half_rotated, tie_embeddings=True, dtype="float32")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a size"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings is 1000000000, not a size"),
        ({"rms_norm_eps": 10**40}, "not a number above 0"),
        ({"sliding_window": 10**40}, "not a number of tokens"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 10**400, "rope_theta": 10_000.0}},
            "not a number above 0",
        ),
        ({"model_type": "x" * 10**6}, "model_type is 'xxxxx"),
        ({"model_type": "a\x1b[31m"}, r"model_type is 'a\x1b[31m'"),
    ],
)
def test_a_foreign_value_takes_no_memory_and_prints_no_control_characters(changed: dict[str, Any], words: str) -> None:
    content = {
        **hf_config.from_litgpt(gpt_config("Gemma-2-2b", {}, 320), tie_embeddings=True, dtype="float32"),
        **changed,
    }
    with pytest.raises(ConfigError) as refused:
        hf_config.to_litgpt(content, "config.json")
    assert words in refused.value.message and len(refused.value.message) < 300 and "\x1b" not in refused.value.message


def test_json_that_is_too_deep_and_a_gguf_file_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(CorruptError):
        schema.parse_json(b"[" * 100_000, "config.json")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(ConfigError, match="is a GGUF file"):
            ModelFolder.open(path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].long()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has whole numbers"):
        ModelFolder.open(folder)
