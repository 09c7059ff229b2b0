"""Model folders against transformers: read, loaded, written, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from litgpt.model import GPT
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bafogpt.core.errors import BafoError, ConfigError, ConflictError, CorruptError, NotFoundError
from bafogpt.model import export
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats import hf_config, param_names, safetensors_io
from bafogpt.model.formats.families import GEMMA_2
from bafogpt.model.formats.folder import ModelFolder
from tests.published import load

from .conftest import SaveGemma
from .small_models import logits_of, text


def network(folder: ModelFolder, *, tied: bool) -> GPT:
    model = GPT(folder.config).eval()
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", ["50GB", "20KB"], ids=["one-file", "sharded"])
def test_a_network_loaded_from_a_folder_of_transformers_has_its_logits(saved: SaveGemma, tied: bool, shard: str):
    path = saved(max_shard_size=shard, tie_word_embeddings=tied)
    assert (path / safetensors_io.INDEX).exists() == (shard == "20KB")
    folder = ModelFolder.open(path)
    assert (folder.tied, folder.config.norm_eps, folder.config.padded_vocab_size) == (tied, 1e-6, 320)

    model = network(folder, tied=tied)
    folder.load_into(model)

    ids = text(2, 24)
    torch.testing.assert_close(logits_of(model, ids), logits_of(load(path), ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", [10**12, 20_000], ids=["one-file", "sharded"])
def test_a_folder_that_is_written_has_the_networks_logits_in_transformers(
    saved: SaveGemma, tmp_path: Path, tied: bool, shard: int
):
    folder = ModelFolder.open(saved(tie_word_embeddings=tied))
    model = network(folder, tied=tied)
    folder.load_into(model)

    ours = folders.save(tmp_path / "ours", model, folder.config, shard_bytes=shard)

    assert (ours.path / safetensors_io.INDEX).exists() == (shard == 20_000)
    assert ours.content["tie_word_embeddings"] is tied
    ids = text(2, 24)
    torch.testing.assert_close(logits_of(load(ours.path), ids), logits_of(model, ids), atol=1e-5, rtol=0)
    for name, weight in folder.weights.items():
        assert torch.equal(weight.tensor(), ours.weights[name].tensor()), name


def test_a_network_with_a_head_of_its_own_takes_a_tied_models_embedding(saved: SaveGemma):
    folder = ModelFolder.open(saved())
    model = network(folder, tied=False)

    folder.load_into(model)

    assert model.lm_head.weight is not model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)


@pytest.fixture
def second_of_two() -> Iterator[None]:
    """This process as rank 1 of 2, without communication."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_sharded_network_gets_this_processes_rows(saved: SaveGemma, tied: bool):
    folder = ModelFolder.open(saved(tie_word_embeddings=tied))
    whole, sharded = network(folder, tied=tied), network(folder, tied=tied)
    folder.load_into(whole)
    for block in sharded.transformer.h:
        fully_shard(block)
    fully_shard(sharded)

    folder.load_into(sharded)

    for (name, full), part in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        assert torch.equal(part.to_local(), full.chunk(2)[1]), name


def test_a_bfloat16_folder_fills_a_float32_network_exactly(saved: SaveGemma):
    folder = ModelFolder.open(saved(dtype=torch.bfloat16))
    assert folder.dtype == torch.bfloat16
    model = network(folder, tied=True)

    folder.load_into(model)

    expected = folder.weights[param_names.HF_EMBEDDING].tensor()
    assert torch.equal(model.transformer.wte.weight, expected.float())


def test_the_config_of_the_published_model_is_litgpts_but_for_the_norm():
    published = {  # as google/gemma-2-2b has it, before layer_types were written down
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-06,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    from litgpt.config import Config

    config = hf_config.to_litgpt(published, "config.json")

    stock = Config.from_name("Gemma-2-2b", norm_eps=1e-6, padded_vocab_size=256000)
    assert config == stock
    assert hf_config.to_litgpt({"model_type": "gemma2"}, "config.json") == stock  # transformers' defaults
    again = hf_config.from_litgpt(config, tie_embeddings=True, dtype="bfloat16")
    assert {key: again[key] for key in published} == published


def test_transformers_reads_every_field_that_is_written(saved: SaveGemma, tmp_path: Path):
    from transformers import AutoConfig

    folder = ModelFolder.open(saved(rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}))
    assert folder.config.rope_base == 5000
    written = hf_config.from_litgpt(folder.config, tie_embeddings=False, dtype="bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(written))

    read = AutoConfig.from_pretrained(tmp_path)

    theirs = json.loads((folder.path / "config.json").read_text())
    for key in GEMMA_2.defaults:
        assert getattr(read, key) == (False if key == "tie_word_embeddings" else theirs[key]), key
    assert read.rope_parameters["rope_theta"] == 5000.0
    assert read.layer_types == theirs["layer_types"]
    assert read.dtype == torch.bfloat16


def break_file(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])


def lose_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors")


def add_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "model.extra.weight": torch.zeros(3)}, path / "model.safetensors")


def only_pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (break_file, CorruptError, "not a whole safetensors file"),
        (lose_tensor, ConfigError, "has no model.norm.weight"),
        (add_tensor, ConfigError, "has model.extra.weight, which Gemma-2 has not"),
        (only_pickled, NotFoundError, "pickled files are not read"),
        (lambda path: (path / "model.safetensors").unlink(), NotFoundError, "has no model.safetensors"),
        (lambda path: (path / "config.json").unlink(), NotFoundError, "has no config.json"),
        (lambda path: (path / "config.json").write_text("[]"), CorruptError, "not a JSON object"),
        (shutil.rmtree, NotFoundError, "no model folder at"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(saved: SaveGemma, spoil: Any, kind: type[BafoError], words: str):
    path = saved()
    spoil(path)

    with pytest.raises(kind) as error:
        ModelFolder.open(path)

    assert words in error.value.message and error.value.hint


@pytest.mark.parametrize(
    ("file", "kind", "words"),
    [
        ("../model.safetensors", CorruptError, "unsafe file name"),
        ("/etc/passwd", CorruptError, "unsafe file name"),
        ("below/model.safetensors", CorruptError, "in another folder"),
        ("missing.safetensors", CorruptError, "missing.safetensors is missing"),
        ("", CorruptError, "has no model.norm.weight, and its index says it has"),
    ],
)
def test_an_index_with_a_wrong_file_is_refused(saved: SaveGemma, file: str, kind: type[BafoError], words: str):
    path = saved(max_shard_size="20KB")
    index = json.loads((path / safetensors_io.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = file or index["weight_map"]["model.embed_tokens.weight"]
    (path / safetensors_io.INDEX).write_text(json.dumps(index))

    with pytest.raises(kind) as error:
        ModelFolder.open(path)

    assert words in error.value.message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_where_they_are_read(saved: SaveGemma, tmp_path: Path, value: float):
    path = saved()
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][5] = value
    save_file(tensors, path / "model.safetensors")
    folder = ModelFolder.open(path)

    with pytest.raises(CorruptError, match=r"theirs/model\.safetensors: model\.norm\.weight has NaN or infinite"):
        folder.load_into(network(folder, tied=True))
    with pytest.raises(CorruptError, match=r"model\.norm\.weight has NaN or infinite values"):
        export.write(export.from_folder(folder), tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_a_network_of_another_vocabulary_is_refused_with_both_sizes(saved: SaveGemma):
    folder = ModelFolder.open(saved())
    other = ModelFolder.open(saved("larger", vocab_size=384))

    with pytest.raises(ConfigError, match="320 rows in its vocabulary, the network 384"):
        folder.load_into(network(other, tied=True))


def test_a_head_of_its_own_does_not_go_into_a_tied_network(saved: SaveGemma):
    folder = ModelFolder.open(saved(tie_word_embeddings=False))

    with pytest.raises(ConfigError, match="output head of its own") as error:
        folder.load_into(network(folder, tied=True))

    assert "tie_embeddings=false" in error.value.hint


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 2), ("intermediate_size", 64)])
def test_a_network_of_another_shape_is_refused(saved: SaveGemma, key: str, value: int):
    folder = ModelFolder.open(saved())
    other = ModelFolder.open(saved("other", **{key: value}))

    with pytest.raises(ConfigError):
        folder.load_into(network(other, tied=True))


def test_a_folder_that_is_there_is_not_written_over(saved: SaveGemma):
    folder = ModelFolder.open(saved())

    with pytest.raises(ConflictError, match="exists already"):
        folders.write(folder.path, folder.content, folder.weights.values())


def test_a_write_that_fails_leaves_nothing(saved: SaveGemma, tmp_path: Path):
    folder = ModelFolder.open(saved())
    weights = [weight for name, weight in folder.weights.items() if name != "model.norm.weight"]

    with pytest.raises(ConfigError, match=r"has no model\.norm\.weight"):
        folders.write(tmp_path / "out", folder.content, weights)

    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_rows_are_read_where_they_lie(saved: SaveGemma):
    folder = ModelFolder.open(saved(max_shard_size="20KB"))
    lit = param_names.to_litgpt(folder.weights, folder.config)
    attention = load(folder.path).model.layers[1].self_attn
    whole = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])

    fused = lit["transformer.h.1.attn.qkv.weight"]

    assert fused.shape == (96, 32)
    for start, stop in [(0, 96), (0, 1), (47, 49), (48, 72), (71, 73), (95, 96), (40, 90)]:
        assert torch.equal(fused.read(start, stop), whole[start:stop]), (start, stop)
