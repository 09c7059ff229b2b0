"""The supported model families, one table each.

``fields`` are the settings in a ``config.json`` (windows and rotary positions are in
:mod:`bafogpt.model.formats.hf_config`); the rest of the network is the family's ``base``, a litgpt configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from litgpt.config import Config
from litgpt.config import configs as litgpt_configs

from bafogpt.core.errors import ConfigError

_SIZES = {
    "vocab_size": "padded_vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_query_groups",
    "head_dim": "head_size",
    "max_position_embeddings": "block_size",
    "rms_norm_eps": "norm_eps",
}
_GEMMA = {
    **_SIZES,
    "query_pre_attn_scalar": "attention_scores_scalar",
    "attn_logit_softcapping": "attention_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "sliding_window_size",
}
_LAYER = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "norm_2.weight": "post_attention_layernorm.weight",
    "mlp.fc_1.weight": "mlp.gate_proj.weight",
    "mlp.fc_2.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}
_GEMMA_LAYER = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "norm_2.weight": "pre_feedforward_layernorm.weight",
    "mlp.fc_1.weight": "mlp.gate_proj.weight",
    "mlp.fc_2.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
    "post_mlp_norm.weight": "post_feedforward_layernorm.weight",
}
_QK_NORMS = {"attn.norm_q.weight": "self_attn.q_norm.weight", "attn.norm_k.weight": "self_attn.k_norm.weight"}
_MUST: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "attention_dropout": (0.0, None),
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
}
_GEMMA_MUST: dict[str, tuple[Any, ...]] = {
    **_MUST,
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "use_bidirectional_attention": (False, None),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family's ``config.json`` and parameter names, mapped to litgpt's."""

    title: str
    model_type: str
    architecture: str
    base: str
    """litgpt's configuration with the settings that no ``config.json`` has: norms, activation, MLP."""
    known: str
    """Prefix of litgpt's names of the published sizes."""
    fields: Mapping[str, str]
    """``config.json`` field → field of litgpt's ``Config``."""
    defaults: Mapping[str, Any]
    """transformers' defaults of ``fields`` and ``tie_word_embeddings``."""
    must: Mapping[str, tuple[Any, ...]]
    """Supported values of other fields; the first is the default."""
    layer: Mapping[str, str]
    """Names within a layer (litgpt → Hugging Face), without query, key and value."""
    full_every: int | None = None
    """Every n-th layer has no sliding window; None for a family without windows."""
    theta: float = 10_000.0
    """Default base of the rotary positions."""
    local_theta: float | None = None
    """The same for layers with a window, if it differs."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Ids of special tokens in the published models."""

    def windows(self, layers: int, every: int | None = None) -> list[int] | None:
        """1 for each layer with a sliding window, 0 for each without; None for a family without windows."""
        if self.full_every is None:
            return None
        return [int((number + 1) % (every or self.full_every) != 0) for number in range(layers)]

    def is_family_of(self, config: Config) -> bool:
        """Whether ``config`` differs from the family's base only in fields of a ``config.json``."""
        own, base = dataclasses.asdict(config), dataclasses.asdict(Config.from_name(self.base))
        free = {*_ANY, *self.fields.values()}
        free |= {"sliding_window_indices"} if self.full_every else set()
        free |= {"rope_local_base_freq", "rope_indices"} if self.local_theta else set()
        return all(own[key] == base[key] for key in base if key not in free)


_ANY = ("name", "hf_config", "vocab_size", "padding_multiple", "rope_base", "rope_adjustments")

GEMMA_2 = Family(
    title="Gemma-2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    base="Gemma-2-2b",
    known="Gemma-2-",
    fields=_GEMMA,
    defaults={
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    must=_GEMMA_MUST,
    layer=_GEMMA_LAYER,
    full_every=2,
    special={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
)
GEMMA_3 = Family(
    title="Gemma-3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    base="Gemma-3-1b-it",
    known="Gemma-3-",
    fields={theirs: ours for theirs, ours in _GEMMA.items() if theirs != "attn_logit_softcapping"},
    defaults={
        **GEMMA_2.defaults,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "final_logit_softcapping": None,
    },
    must={**_GEMMA_MUST, "attn_logit_softcapping": (None,)},  # transformers' Gemma-3 has the field and ignores it
    layer={**_GEMMA_LAYER, **_QK_NORMS},
    full_every=6,
    theta=1_000_000.0,
    local_theta=10_000.0,
    special=GEMMA_2.special,
)
QWEN_3 = Family(
    title="Qwen-3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    base="Qwen3-0.6B",
    known="Qwen3-",
    fields=_SIZES,
    defaults={
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    must={**_MUST, "hidden_act": ("silu",), "use_sliding_window": (False, None)},
    layer={**_LAYER, **_QK_NORMS},
)
FAMILIES = (GEMMA_2, GEMMA_3, QWEN_3)
TITLES = ", ".join(family.title for family in FAMILIES)

_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma-3-270m": (
        "Gemma-3-1b-it",
        {
            "n_embd": 640,
            "n_layer": 18,
            "intermediate_size": 2048,
            "block_size": 32_768,
            "sliding_window_indices": GEMMA_3.windows(18),
            "rope_indices": GEMMA_3.windows(18),
        },
    ),
    **{f"Gemma-3-{size}-pt": (f"Gemma-3-{size}-it", {}) for size in ("1b", "4b", "12b", "27b")},
}
"""Published models that litgpt does not list: a similar one, and the differences."""
NAMES = (*_MORE, *(str(config["name"]) for config in litgpt_configs))
"""The names for :func:`configuration`."""


def configuration(name: str, **fields: Any) -> Config:
    """litgpt's configuration of that name (one of :data:`NAMES`) with some fields changed.

    Raises what ``Config`` raises for fields that do not make a model: AssertionError, ValueError, TypeError.
    """
    if name not in _MORE:
        return Config.from_name(name, **fields)
    base, changes = _MORE[name]
    config = Config.from_name(base, **{**changes, **fields})
    config.name = name
    return config


def family_of(config: Config) -> Family | None:
    """The family whose ``config.json`` can describe a network; None where there is none."""
    return next((family for family in FAMILIES if family.is_family_of(config)), None)


def require_family(config: Config) -> Family:
    """The family of a network. Raises :class:`ConfigError` where there is none."""
    family = family_of(config)
    if family is None:
        message = f"{config.name or 'this model'} is of no family that can be written: {TITLES}"
        raise ConfigError(message, "train a model of one of these families")
    return family


def name_of(config: Config) -> str:
    """The published name of a model of that shape, or the family's; litgpt depends on it for Gemma's norms.

    Raises :class:`ConfigError`.
    """
    family = require_family(config)
    shape = ("n_embd", "n_layer", "n_head", "intermediate_size")
    for name in NAMES:
        if name.startswith(family.known):
            known = configuration(name)
            if family.is_family_of(known) and all(getattr(known, key) == getattr(config, key) for key in shape):
                return name
    return family.known.removesuffix("-")
