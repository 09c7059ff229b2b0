"""litgpt's configurations, with what a job changes in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from litgpt.config import Config
from litgpt.config import configs as litgpt_configs

from bafogpt.core.errors import ConfigError, did_you_mean

PADDING_MULTIPLE = 64
"""Rows of embedding and output head are a multiple of this: matrix kernels are slow at odd sizes."""


def padded(vocab_size: int) -> int:
    """The vocabulary's size with padding."""
    return -(-vocab_size // PADDING_MULTIPLE) * PADDING_MULTIPLE


def gpt_config(name: str, overrides: Mapping[str, Any], vocab_size: int) -> Config:
    """litgpt's configuration ``name`` with ``overrides`` of its fields and a vocabulary of ``vocab_size`` ids.

    ``norm_eps`` is 1e-6 unless overridden: litgpt's Gemma-2 has 1e-5 where the published model has 1e-6.
    Raises :class:`ConfigError` for a name or a field litgpt does not have, and for a network that :class:`GPT
    <bafogpt.model.gpt.GPT>` is not made for.
    """
    names = [config["name"] for config in litgpt_configs]
    if name not in names:
        hint = "see the names in litgpt.config.configs"
        raise ConfigError(f"model.name: no litgpt configuration '{name}'{did_you_mean(name, names)}", hint)
    known = {field.name for field in dataclasses.fields(Config)}
    for key in overrides:
        if key not in known:
            raise ConfigError(f"model.overrides: no field '{key}'{did_you_mean(key, known)}", "fix model.overrides")
    fields: dict[str, Any] = {
        "norm_eps": 1e-6,
        **overrides,
        "vocab_size": vocab_size,
        "padded_vocab_size": padded(vocab_size),
    }
    layers = fields.get("n_layer")
    base = Config.from_name(name)
    if layers and base.sliding_window_indices and "sliding_window_indices" not in fields:
        # every other layer, as in Gemma-2, for however many layers there are
        fields["sliding_window_indices"] = [1 - i % 2 for i in range(layers)]
    try:
        config = Config.from_name(name, **fields)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"model.overrides do not make a model: {error}", "fix model.overrides") from None
    if config.latent_attention or config.lm_head_bias:
        what = "latent attention" if config.latent_attention else "a bias at the output head"
        raise ConfigError(f"model.name: {name} has {what}, which is not supported", "choose another model.name")
    return config


def fingerprint(config: Config, tie_embeddings: bool) -> dict[str, Any]:
    """What must be equal for one model's weights to fit another: the configuration without names and defaults."""
    fields = dataclasses.asdict(config)
    shape = {key: value for key, value in fields.items() if key not in ("name", "hf_config") and value is not None}
    return {**shape, "tie_embeddings": tie_embeddings}
