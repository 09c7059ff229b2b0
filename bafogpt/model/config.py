"""litgpt's configurations with a job's overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from litgpt.config import Config

from bafogpt.core.errors import ConfigError, did_you_mean
from bafogpt.model.formats.families import NAMES, configuration, family_of

PADDING_MULTIPLE = 64
"""Rows of embedding and output head are a multiple of this, for fast matrix kernels."""
MAX_PADDING = 512
"""Most rows of a published model beyond its tokenizer's ids; Qwen-3 has 267."""


def padded_vocab(vocab_size: int) -> int:
    """The vocabulary's size rounded up to a multiple of 64."""
    return -(-vocab_size // PADDING_MULTIPLE) * PADDING_MULTIPLE


def vocab_fits(rows: int, ids: int, *, same_tokenizer: bool) -> bool:
    """Whether a model with ``rows`` rows can belong to a tokenizer with ``ids`` ids.

    With ``same_tokenizer`` (it is the model's own), the model may have more padding, and the tokenizer special tokens
    beyond the rows: Gemma-3 has 262,144 rows and its tokenizer 262,145 ids.
    """
    lowest, highest = (1 - PADDING_MULTIPLE, MAX_PADDING) if same_tokenizer else (0, PADDING_MULTIPLE)
    return lowest <= rows - ids < highest


def gpt_config(name: str, overrides: Mapping[str, Any], vocab_size: int) -> Config:
    """litgpt's configuration ``name`` with ``overrides`` of its fields and a vocabulary of ``vocab_size`` ids.

    A known family (:mod:`bafogpt.model.formats.families`) has its published ``norm_eps`` (1e-6 for Gemma, where litgpt
    has 1e-5), and for another ``n_layer`` the windows and rotary positions follow its pattern. Raises
    :class:`ConfigError` for a name or field that litgpt does not have, and for an unsupported network.
    """
    if name not in NAMES:
        hint = "see the names in litgpt.config.configs"
        raise ConfigError(f"model.name: no litgpt configuration '{name}'{did_you_mean(name, NAMES)}", hint)
    require_fields(overrides)
    fields: dict[str, Any] = {**overrides, "vocab_size": vocab_size, "padded_vocab_size": padded_vocab(vocab_size)}
    family = family_of(configuration(name))
    if family is not None:
        fields.setdefault("norm_eps", family.defaults["rms_norm_eps"])
    if family is not None and family.full_every:
        layers = fields.get("n_layer", configuration(name).n_layer)
        windows = fields.setdefault("sliding_window_indices", family.windows(layers))
        if family.local_theta:
            fields.setdefault("rope_indices", windows)
    try:
        config = configuration(name, **fields)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"model.overrides do not make a model: {error}", "fix model.overrides") from None
    if config.latent_attention or config.lm_head_bias:
        what = "latent attention" if config.latent_attention else "a bias at the output head"
        raise ConfigError(f"model.name: {name} has {what}, which is not supported", "choose another model.name")
    return config


def require_fields(overrides: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a field that litgpt's ``Config`` does not have."""
    known = {field.name for field in dataclasses.fields(Config)}
    for key in overrides:
        if key not in known:
            raise ConfigError(f"model.overrides: no field '{key}'{did_you_mean(key, known)}", "fix model.overrides")


def fingerprint(config: Config, tie_embeddings: bool) -> dict[str, Any]:
    """The configuration without names and unset fields: equal where one model's weights fit another."""
    fields = dataclasses.asdict(config)
    shape = {key: value for key, value in fields.items() if key not in ("name", "hf_config") and value is not None}
    return {**shape, "tie_embeddings": tie_embeddings}
