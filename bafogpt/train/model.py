"""litgpt's GPT from a job's configuration, and its loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from litgpt.config import Config
from litgpt.config import configs as litgpt_configs
from litgpt.model import GPT
from torch import nn
from torch.nn.functional import cross_entropy

from bafogpt.core.errors import ConfigError, did_you_mean
from bafogpt.train.batches import IGNORED, Batch
from bafogpt.train.config import ModelConfig

PADDING_MULTIPLE = 64
LOSS_CHUNK_TOKENS = 256
"""Tokens whose logits exist at a time. A full [tokens, 296,000] matrix would be the largest tensor of the run."""


def gpt_config(model: ModelConfig, vocab_size: int) -> Config:
    """litgpt's configuration with the job's overrides and the dataset's vocabulary.

    ``norm_eps`` is 1e-6 unless overridden: litgpt's Gemma-2 has 1e-5 where the published model has 1e-6.
    Raises :class:`ConfigError` for a name or a field litgpt does not have.
    """
    names = [config["name"] for config in litgpt_configs]
    if model.name not in names:
        hint = "see the names in litgpt.config.configs"
        raise ConfigError(f"model.name: no litgpt configuration '{model.name}'{did_you_mean(model.name, names)}", hint)
    known = {field.name for field in dataclasses.fields(Config)}
    for key in model.overrides:
        if key not in known:
            raise ConfigError(f"model.overrides: no field '{key}'{did_you_mean(key, known)}", "fix model.overrides")
    padded = -(-vocab_size // PADDING_MULTIPLE) * PADDING_MULTIPLE
    fields: dict[str, Any] = {
        "norm_eps": 1e-6,
        **model.overrides,
        "vocab_size": vocab_size,
        "padded_vocab_size": padded,
    }
    layers = fields.get("n_layer")
    base = Config.from_name(model.name)
    if layers and base.sliding_window_indices and "sliding_window_indices" not in fields:
        # every other layer, as in Gemma-2, for however many layers there are
        fields["sliding_window_indices"] = [1 - i % 2 for i in range(layers)]
    try:
        return Config.from_name(model.name, **fields)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"model.overrides do not make a model: {error}", "fix model.overrides") from None


def fingerprint(config: Config, tie_embeddings: bool) -> dict[str, Any]:
    """What must be equal for one model's weights to fit another: the configuration without names and defaults."""
    fields = dataclasses.asdict(config)
    shape = {key: value for key, value in fields.items() if key not in ("name", "hf_config") and value is not None}
    return {**shape, "tie_embeddings": tie_embeddings}


def new_gpt(config: Config, *, tie_embeddings: bool, seed: int) -> GPT:
    """A model with random weights that depend on ``seed`` alone, on the CPU in float32."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = GPT(config)
    model.apply(model._init_weights)
    torch.random.set_rng_state(generator_state)
    if tie_embeddings:
        tie(model)
    return model


def tie(model: GPT) -> None:
    """Make the output head the embedding matrix itself. litgpt keeps two."""
    model.lm_head.weight = model.transformer.wte.weight


def loss_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of the cross-entropy (float32, nats) over the targets of a batch that are learned from."""
    logits = model(batch.ids, lm_head_chunk_size=LOSS_CHUNK_TOKENS)
    targets = torch.split(batch.targets, LOSS_CHUNK_TOKENS, dim=1)
    losses = [
        cross_entropy(chunk.flatten(0, 1).float(), right.flatten(), reduction="sum", ignore_index=IGNORED)
        for chunk, right in zip(logits, targets, strict=True)
    ]
    return torch.stack(losses).sum()
