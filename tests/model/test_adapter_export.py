"""What a fine-tuning run has to export: by its name alone, from records and a checkpoint as a trainer leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bafogpt.core.errors import BafoError, ConfigError, CorruptError
from bafogpt.core.settings import Settings
from bafogpt.data import instructions, prompts, tokenizer
from bafogpt.data.instructions import InstructionOptions
from bafogpt.model import adapter_export, lora, runs
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.merge import MergeComparison
from bafogpt.storage.bucket import Bucket

from ..talking import make_model
from .small_models import put_run

CONFIG = AdapterConfig(r=4, alpha=8.0, base="nf4")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture
def local(tmp_path: Path) -> Bucket:
    """A bucket with a base model in it, and instructions in its tokenizer."""
    bucket = Bucket.open(f"file://{tmp_path}/bucket")
    folder = make_model(tmp_path / "bucket" / "models" / "base", **WIDE)
    words = tokenizer.load(str(folder))
    instructions.prepare(
        ["starter"],
        style=prompts.load("alpaca", words),
        tokenizer=words,
        out=bucket.child("data/asked"),
        options=InstructionOptions(context=512),
    )
    return bucket


@pytest.fixture
def tuned(local: Bucket, tmp_path: Path) -> Callable[..., Path]:
    """``tuned(began="models/base", **metadata)``: ``runs/tuned`` with a checkpoint of an adapter."""

    def make(began: str | None = "models/base", step: int = 5, **metadata: Any) -> Path:
        base, out = tmp_path / "bucket" / "models" / "base", tmp_path / f"saved-{step}"
        options: Any = {"adapter": CONFIG, "step": step, "data": "data/asked", "metadata": metadata}
        return put_run(local, "tuned", base, out, began=began, **options)

    return make


def merge(local: Bucket, tmp_path: Path) -> MergeComparison:
    settings = Settings(bucket=local.url, home=str(tmp_path / "home"))
    run = runs.find(local, "tuned")
    return adapter_export.export_merged(local, run, tmp_path / "scratch", tmp_path / "out", settings)


def test_a_run_is_merged_into_what_it_was_trained_on_and_talks_as_it_was_taught(
    local: Bucket, tuned: Callable[..., Path], tmp_path: Path
):
    tuned()

    found = merge(local, tmp_path)

    assert abs(found.trained_loss - found.merged_loss) <= 0.005 and found.argmax >= 0.98
    assert adapter_export.merge_target(runs.find(local, "tuned")) == "dequantised"
    style = prompts.load("chat", tokenizer.load(str(tmp_path / "out")))
    assert style.template == prompts.load("alpaca", tokenizer.load("bytes")).template
    base = ModelFolder.open(tmp_path / "bucket" / "models" / "base")
    merged = ModelFolder.open(tmp_path / "out")
    changed = {
        name for name in base.weights if not torch.equal(base.weights[name].tensor(), merged.weights[name].tensor())
    }
    assert len(changed) == 2 * 7, "what 4 bits changed, and the pairs with them; embedding and norms are as they were"


def test_the_best_is_the_one_with_the_lowest_validation_loss(local: Bucket, tuned: Callable[..., Path]):
    for step, loss in ((5, 2.0), (6, 1.5), (7, 1.8), (8, None)):
        tuned(step=step, validation_loss=loss)

    assert runs.find(local, "tuned", best=True).checkpoint.step == 6
    assert runs.find(local, "tuned").checkpoint.step == 8
    with pytest.raises(BafoError, match="no checkpoint of run tuned was validated"):
        runs.find(local, "tuned", 8, best=True)


def test_a_base_that_is_nowhere_or_another_by_now_is_refused(local: Bucket, tuned: Callable[..., Path], tmp_path: Path):
    tuned(began=None)
    with pytest.raises(ConfigError, match="is random weights") as caught:
        merge(local, tmp_path)
    assert "--adapter" in caught.value.hint
    tuned(step=6)
    weights = tmp_path / "bucket" / "models" / "base" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    with pytest.raises(ConfigError, match="for another base: the same sizes, other weights"):
        merge(local, tmp_path)
    assert not (tmp_path / "out").exists()


def test_half_a_checkpoint_is_no_adapter(tuned: Callable[..., Path]):
    saved = tuned()
    whole = saved / "model.safetensors"
    tensors = load_file(whole)
    save_file(dict(list(tensors.items())[1:]), whole)
    with pytest.raises(CorruptError, match="half an adapter: it has no transformer"):
        lora.from_checkpoint(saved)
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(CorruptError, match="is not a checkpoint"):
        lora.from_checkpoint(saved)
    whole.unlink()
    with pytest.raises(CorruptError, match="half an adapter"):
        lora.from_checkpoint(saved)
