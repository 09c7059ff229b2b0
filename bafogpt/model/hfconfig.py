"""``config.json`` of Hugging Face's Gemma-2 and litgpt's ``Config``, both ways.

What litgpt's network does not do (another activation, scaled rotary positions, attention biases) is refused, not
ignored. Fields that a file leaves out have the defaults of ``transformers.Gemma2Config``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litgpt.config import Config
from litgpt.config import configs as litgpt_configs

from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError

CONFIG = "config.json"
FAMILY = "gemma2"
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
_MUST: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attention_bias": (False, None),
    "use_bidirectional_attention": (False, None),
}
"""The values that litgpt's network has; absent is the first."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def read(folder: Path) -> dict[str, Any]:
    """A model folder's ``config.json``. Raises :class:`NotFoundError`, and :class:`CorruptError` for no JSON object."""
    path = folder / CONFIG
    if not path.is_file():
        what = f"{folder} has no {CONFIG}" if folder.is_dir() else f"no model folder at {folder}"
        raise NotFoundError(what, "bafogpt model pull google/gemma-2-2b")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptError(f"{path}: {error}", f"head -c 200 {path}") from None
    if not isinstance(content, dict):
        raise CorruptError(f"{path}: not a JSON object", f"head -c 200 {path}")
    return content


def tied(content: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding matrix."""
    return bool(content.get("tie_word_embeddings", True))


def to_litgpt(content: Mapping[str, Any], where: str) -> Config:
    """litgpt's configuration of a ``config.json``; ``where`` names the file in errors.

    Its ``norm_eps`` is the file's, 1e-6 for Gemma-2 where litgpt's own has 1e-5, and its vocabulary is the padded one:
    a ``config.json`` knows no other. Raises :class:`ConfigError` for another family or what the network cannot do.
    """
    if content.get("model_type") != FAMILY:
        family = content.get("model_type") or "no model_type"
        raise ConfigError(
            f"{where}: {family}; only Gemma-2 ({FAMILY}) can be read", "bafogpt model pull google/gemma-2-2b"
        )
    for key, allowed in _MUST.items():
        if content.get(key, allowed[0]) not in allowed:
            raise ConfigError(
                f"{where}: {key} is {content[key]!r}; the network has {allowed[0]!r}", "use another model"
            )
    values = {key: content.get(key, default) for key, default in _DEFAULTS.items()}
    for key in _SIZES:
        if type(values[key]) is not int or values[key] < 1:
            raise ConfigError(f"{where}: {key} is {values[key]!r}, not a size", f"edit {where}")
    layers = values["num_hidden_layers"]
    fields: dict[str, Any] = {
        "vocab_size": values["vocab_size"],
        "padded_vocab_size": values["vocab_size"],
        "n_embd": values["hidden_size"],
        "intermediate_size": values["intermediate_size"],
        "n_layer": layers,
        "n_head": values["num_attention_heads"],
        "n_query_groups": values["num_key_value_heads"],
        "head_size": values["head_dim"],
        "block_size": values["max_position_embeddings"],
        "norm_eps": values["rms_norm_eps"],
        "rope_base": _rope_base(content, where),
        "attention_scores_scalar": values["query_pre_attn_scalar"],
        "attention_logit_softcapping": values["attn_logit_softcapping"],
        "final_logit_softcapping": values["final_logit_softcapping"],
        "sliding_window_size": values["sliding_window"],
        "sliding_window_indices": _windows(content.get("layer_types"), layers, where),
    }
    try:
        config: Config = Config.from_name("Gemma-2-2b", **fields)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"{where} does not make a model: {error}", f"edit {where}") from None
    config.name = name_of(config)
    return config


def require_family(config: Config) -> None:
    """Raise :class:`ConfigError` for a network that is not Gemma-2's."""
    if not (config.post_mlp_norm and config.mlp_class_name == "GemmaMLP" and config.scale_embeddings):
        raise ConfigError(f"{config.name or 'this model'} is not of the Gemma-2 family", "use a Gemma-2")


def name_of(config: Config) -> str:
    """litgpt's name for a model of that shape. "Gemma" in it is what gives litgpt's norms their unit offset."""
    shape = ("n_embd", "n_layer", "n_head", "intermediate_size")
    for each in litgpt_configs:
        name: str = each["name"]
        same = name.startswith("Gemma-2-") and not name.endswith("-it")
        if same and all(each[key] == getattr(config, key) for key in shape):
            return name
    return "Gemma-2"


def from_litgpt(
    config: Config, *, tie_embeddings: bool, dtype: str, special: Mapping[str, int | None] | None = None
) -> dict[str, Any]:
    """A ``config.json`` that transformers 4 and 5 read. ``special`` are ids of tokens: ``bos_token_id``, ….

    ``vocab_size`` is the padded size, that of the matrices. Raises :class:`ConfigError` for another family.
    """
    require_family(config)
    known: dict[str, int | None] = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, **(special or {})}
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": FAMILY,
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": float(config.rope_base),
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "sliding_window": config.sliding_window_size or config.block_size,
        "layer_types": _layer_types(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        **known,
    }


def _rope_base(content: Mapping[str, Any], where: str) -> int:
    """The base of the rotary positions, from transformers 5's field or transformers 4's."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{where}: rotary positions of type {kind!r} are not supported", "use another model")
    return int(rope.get("rope_theta", content.get("rope_theta", 10_000)))


def _windows(layer_types: Any, layers: int, where: str) -> list[int]:
    """1 for each layer that sees its window only; every other one where the file does not say."""
    if layer_types is None:
        return [1 - number % 2 for number in range(layers)]
    known = {"sliding_attention": 1, "full_attention": 0}
    if not isinstance(layer_types, list) or len(layer_types) != layers or not set(layer_types) <= set(known):
        raise ConfigError(f"{where}: layer_types do not name {layers} layers", f"edit {where}")
    return [known[each] for each in layer_types]


def _layer_types(config: Config) -> list[str]:
    windows = config.sliding_window_indices or [0] * config.n_layer
    return ["sliding_attention" if window else "full_attention" for window in windows]
