"""Adapters merged: what comes out is what was trained, and what does not belong together is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bafogpt.cli import main as command_line
from bafogpt.core.errors import ConfigError, DataError
from bafogpt.model import lora
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.gpt import GPT, tie
from bafogpt.model.merge import MergeTarget, merge
from tests.published import load

from .conftest import SaveGemma
from .small_models import logits_of, text

ATTENTION = ("query", "key", "value", "projection")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # rows of whole 4-bit blocks


def adapter_for(base: Path, out: Path, *targets: str) -> Path:
    """An adapter with random pairs, as training would leave it."""
    folder = ModelFolder.open(base)
    model = GPT(folder.config)
    if folder.tied:
        tie(model)
    folder.load_into(model)
    digest = lora.base_digest(model)
    config = AdapterConfig(r=4, alpha=8.0, targets=targets or ATTENTION)
    lora.add(model, folder.config, config, seed=3)
    torch.manual_seed(4)
    tensors = {name: 0.05 * torch.randn_like(tensor) for name, tensor in lora.tensors(model).items()}
    lora.save(out, tensors, config, folder.config, base="base", base_digest=digest)
    return out


def samples() -> list[torch.Tensor]:
    return list(text(2, 48))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_merge_into_the_dequantised_base_is_what_was_trained(saved: SaveGemma, tmp_path: Path, tied: bool):
    base = saved(tie_word_embeddings=tied, **WIDE)
    adapter = adapter_for(base, tmp_path / "adapter")

    found = merge(base, adapter, tmp_path / "out", samples(), into="dequantised")

    assert (found.samples, found.tokens) == (2, 94)
    assert abs(found.trained_loss - found.merged_loss) <= 0.005 and found.argmax >= 0.98
    assert found.largest_difference <= 1e-3
    original = merge(base, adapter, tmp_path / "original", samples(), into="original")
    assert original.largest_difference <= 1e-3, "held against the adapter on the base as it is"
    assert abs(original.trained_loss - found.trained_loss) > 1e-4, "4 bits are another base"


@pytest.mark.parametrize("targets", [ATTENTION, ("mlp",), ("head", "embedding")], ids=["attention", "mlp", "outside"])
def test_the_merged_model_has_the_logits_of_peft_in_transformers(
    saved: SaveGemma, tmp_path: Path, targets: tuple[str, ...]
):
    from peft import PeftModel

    base = saved(tie_word_embeddings=False, **WIDE)
    adapter = adapter_for(base, tmp_path / "adapter", *targets)
    merge(base, adapter, tmp_path / "out", samples(), into="original")

    theirs = PeftModel.from_pretrained(load(base), adapter).eval()

    ids = text(2, 24)
    torch.testing.assert_close(logits_of(load(tmp_path / "out"), ids), logits_of(theirs, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("into", ["dequantised", "original"])
def test_an_adapter_of_another_base_is_refused_and_nothing_is_written(
    saved: SaveGemma, tmp_path: Path, into: MergeTarget
):
    base, other = saved("base", **WIDE), saved("other", seed=1, **WIDE)
    adapter = adapter_for(other, tmp_path / "adapter")

    with pytest.raises(ConfigError, match="another base"):
        merge(base, adapter, tmp_path / "out", samples(), into=into)

    assert not (tmp_path / "out").exists()


def test_a_head_that_is_the_embedding_takes_no_adapter_of_its_own(saved: SaveGemma, tmp_path: Path):
    base = saved(**WIDE)
    adapter = adapter_for(saved("untied", tie_word_embeddings=False, **WIDE), tmp_path / "adapter", "head")

    with pytest.raises(ConfigError, match="one matrix"):
        merge(base, adapter, tmp_path / "out", samples())


def test_a_comparison_needs_samples(saved: SaveGemma, tmp_path: Path):
    base = saved(**WIDE)

    with pytest.raises(DataError, match="nothing to compare"):
        merge(base, adapter_for(base, tmp_path / "adapter"), tmp_path / "out", [])


def test_the_command_says_in_two_lines_what_is_wrong_with_an_adapter(saved: SaveGemma, tmp_path: Path, capsys: Any):
    base, other = saved("base", **WIDE), saved("other", seed=1, **WIDE)
    half, unknown = adapter_for(base, tmp_path / "half"), adapter_for(base, tmp_path / "unknown")
    (half / "adapter_model.safetensors").write_bytes((half / "adapter_model.safetensors").read_bytes()[:-100])
    config = json.loads((unknown / "adapter_config.json").read_text())
    (unknown / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_prj"]}))
    for adapter, code, says in (
        (half, 1, "is half an adapter"),
        (unknown, 2, "no target module 'q_prj' (did you mean 'q_proj'?)"),
        (adapter_for(other, tmp_path / "of-another"), 2, "is for another base: the same sizes, other weights"),
        (tmp_path / "nowhere", 1, "is no adapter"),
    ):
        capsys.readouterr()
        words = ["model", "merge", str(base), str(adapter), "--out", str(tmp_path / "out")]
        assert command_line.main(words) == code
        error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
        assert error.startswith("error: ") and says in error
        assert hint.startswith(" hint: ")
        assert not (tmp_path / "out").exists()


def test_the_command_prints_both_losses(saved: SaveGemma, tmp_path: Path, capsys: Any):
    base = saved(**WIDE)
    adapter = adapter_for(base, tmp_path / "adapter")

    assert command_line.main(["model", "merge", str(base), str(adapter), "--out", str(tmp_path / "out"), "--json"]) == 0

    record = json.loads(capsys.readouterr().out)
    assert record["samples"] == 16 and record["tokens"] == 16 * 63, "the starter's text, as bytes"
    assert abs(record["trained_loss"] - record["merged_loss"]) <= 0.005
