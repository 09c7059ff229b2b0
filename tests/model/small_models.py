"""Small Gemma-2 models, ours and transformers', and runs that trained them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bafogpt.model import lora
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.config import fingerprint, gpt_config
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.gpt import GPT, load_gpt, new_gpt
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from tests import published

SMALL: dict[str, Any] = {
    "n_layer": 4,
    "n_embd": 48,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 16,
    "intermediate_size": 96,
    "sliding_window_size": 16,
    "attention_scores_scalar": 24,
    "block_size": 512,
}
VOCABULARY = 320


def small(seed: int = 1, tied: bool = True, **overrides: Any) -> GPT:
    """A model of 0.1 M parameters whose weights are large enough for the soft-caps to bend."""
    config = gpt_config("Gemma-2-2b", {**SMALL, **overrides}, VOCABULARY)
    model = new_gpt(config, tie_embeddings=tied, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.dim() == 1 else 0.15
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if "post" in name:
                weight -= 0.5
    return model


def text(batch: int, tokens: int, seed: int = 7) -> torch.Tensor:
    """Random ids, [batch, tokens] int64."""
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, V] of transformers' model or ours."""
    found = model(ids)
    return (found if isinstance(found, torch.Tensor) else found.logits).float()


def as_gemma(model: GPT) -> Any:
    """transformers' Gemma-2 with the weights of ``model``; no token ends its answers."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = published.load(folders.save(Path(folder) / "model", model, model.config).path)
    theirs.generation_config.eos_token_id = None
    return theirs


def put_run(
    bucket: Bucket,
    name: str,
    base: Path,
    out: Path,
    *,
    began: str | None,
    adapter: AdapterConfig | None = None,
    step: int = 5,
    data: str = "data/none",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A run with a checkpoint of ``base``, or of an adapter on it with random pairs, as a trainer writes it."""
    folder = ModelFolder.open(base)
    network = load_gpt(folder)
    known: dict[str, Any] = {"model": fingerprint(folder.config, folder.tied)}
    if adapter:
        known |= {"adapter": asdict(adapter), "base": lora.base_digest(network)}
        lora.add(network, folder.config, adapter, seed=step)
        torch.manual_seed(step)
        for each in lora.tensors(network).values():
            each.copy_(0.05 * torch.randn_like(each))
    tensors = lora.tensors(network) if adapter else dict(network.named_parameters())
    out.mkdir(parents=True)
    save_file({f"model.{key}": each.detach().clone() for key, each in tensors.items()}, out / "model.safetensors")
    (out / "checkpoint.json").write_text(json.dumps({"step": step, "samples": 1, "fingerprint": known}))
    model = {"name": "Gemma-2-2b", "checkpoint": began}
    train = {"adapter": known.get("adapter"), "data": {"path": data}, "model": model}
    run = bucket.child(f"runs/{name}")
    run.put("run.json", json.dumps({"name": name, "job": {"train": train}}).encode())
    store = CheckpointStore(run.child("checkpoints"))
    store.upload(out, step=step, samples=1, upload_id=f"u{step}", metadata=dict(metadata or {}))
    return out
