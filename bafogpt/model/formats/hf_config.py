"""Converts Hugging Face's ``config.json`` to litgpt's ``Config`` and back (:mod:`bafogpt.model.formats.families`).

Unsupported settings (another activation, attention biases, other rotary positions) are errors. Missing fields have the
defaults of transformers' class for the family.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litgpt.config import Config

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, NotFoundError
from bafogpt.model.formats.families import FAMILIES, TITLES, Family, name_of, require_family

CONFIG = "config.json"
_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_MOST = {"num_hidden_layers": 1_000, "max_position_embeddings": 1 << 20}
"""Upper bounds of sizes in a file, so that a wrong one cannot exhaust memory; 2²⁴ for the others."""
_MOST_NUMBER = 1e12
_OPTIONAL = ("attn_logit_softcapping", "final_logit_softcapping")
_LAYER_TYPES = {"sliding_attention": 1, "full_attention": 0}


def read(folder: Path) -> dict[str, Any]:
    """Read ``config.json``. Raises :class:`NotFoundError` and :class:`~bafogpt.core.errors.CorruptError`."""
    path = folder / CONFIG
    if not path.is_file():
        _refuse_gguf(folder)
        what = f"{folder} has no {CONFIG}" if folder.is_dir() else f"no model folder at {folder}"
        raise NotFoundError(what, "bafogpt model pull google/gemma-2-2b")
    return schema.parse_json(path.read_bytes(), str(path))


def _refuse_gguf(path: Path) -> None:
    """Raise :class:`ConfigError` where the path is a GGUF file, or a folder with one."""
    found = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if found:
        raise ConfigError(
            f"{found[0]} is a GGUF file: a model folder has {CONFIG} and safetensors",
            "fetch the model in safetensors (bafogpt model pull ORG/NAME), or convert it with transformers",
        )


def shown(value: object) -> str:
    """The shortened repr of a value, for errors."""
    return reprlib.repr(value)


def family_in(content: Mapping[str, Any], where: str) -> Family:
    """The family of a ``config.json``. Raises :class:`ConfigError` for an unsupported one."""
    named = content.get("model_type")
    for family in FAMILIES:
        if named == family.model_type:
            return family
    for family in FAMILIES:
        if "text_config" in content and family.model_type == f"{named}_text":
            raise ConfigError(
                f"{where}: {named} takes images too; only its text model ({family.model_type}) can be read",
                "bafogpt model pull google/gemma-3-1b-pt, or another folder of a text model",
            )
    raise ConfigError(
        f"{where}: model_type is {shown(named)}; only {TITLES} can be read", "bafogpt model pull google/gemma-2-2b"
    )


def tied(content: Mapping[str, Any], where: str) -> bool:
    """Whether the output head is the embedding matrix. Raises :class:`ConfigError`."""
    found = content.get("tie_word_embeddings", family_in(content, where).defaults["tie_word_embeddings"])
    if not isinstance(found, bool):
        raise ConfigError(f"{where}: tie_word_embeddings is {shown(found)}, not true or false", f"edit {where}")
    return found


def to_litgpt(content: Mapping[str, Any], where: str) -> Config:
    """litgpt's configuration for a ``config.json``, whose vocabulary is the padded one; ``where`` names the file.

    Raises :class:`ConfigError` for an unsupported family or setting, and for values that do not make a model.
    """
    family = family_in(content, where)
    for key, allowed in family.must.items():
        if content.get(key, allowed[0]) not in allowed:
            raise ConfigError(
                f"{where}: {key} is {shown(content[key])}; the network has {allowed[0]!r}", "use another model"
            )
    values = {key: content.get(key, family.defaults[key]) for key in family.fields}
    for key in _COUNTS:
        if type(values[key]) is not int or not 1 <= values[key] <= _MOST.get(key, 1 << 24):
            raise ConfigError(f"{where}: {key} is {shown(values[key])}, not a size", f"edit {where}")
    windows = _windows(content, family, values["num_hidden_layers"], where)
    for key, value in values.items():
        if key == "sliding_window" and any(windows or ()) and (type(value) is not int or not 1 <= value < 1 << 24):
            raise ConfigError(f"{where}: sliding_window is {shown(value)}, not a number of tokens", f"edit {where}")
        if key not in _COUNTS and key != "sliding_window" and not (value is None and key in _OPTIONAL):
            _require_positive(key, value, where)
    fields: dict[str, Any] = {ours: values[theirs] for theirs, ours in family.fields.items()}
    fields |= {"vocab_size": values["vocab_size"], **_ropes(content, family, where)}
    if windows is not None:
        fields["sliding_window_indices"] = windows
    if family.local_theta:
        fields["rope_indices"] = windows
    try:
        config: Config = Config.from_name(family.base, **fields)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{where} does not make a model: {str(error) or 'its heads do not divide'}", f"edit {where}"
        ) from None
    config.name = name_of(config)
    return config


def from_litgpt(
    config: Config, *, tie_embeddings: bool, dtype: str, special: Mapping[str, int | None] | None = None
) -> dict[str, Any]:
    """A ``config.json`` for transformers 4 and 5. ``special`` are token ids: ``bos_token_id``, ….

    ``vocab_size`` is the padded size. Raises :class:`ConfigError` for a network that no ``config.json`` can describe.
    """
    family = require_family(config)
    values = {theirs: getattr(config, ours) for theirs, ours in family.fields.items()}
    if "query_pre_attn_scalar" in values:
        values["query_pre_attn_scalar"] = values["query_pre_attn_scalar"] or config.head_size
    if family.full_every:
        values["sliding_window"] = values["sliding_window"] or config.block_size
        values["layer_types"] = _layer_types(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **values,
        **_written_ropes(config, family),
        **{key: allowed[0] for key, allowed in family.must.items() if allowed[0] is not None},
        "initializer_range": 0.02,
        "tie_word_embeddings": tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        **family.special,
        **(special or {}),
    }


def _require_positive(key: str, value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_NUMBER:
        raise ConfigError(f"{where}: {key} is {shown(value)}, not a number above 0", f"edit {where}")


def _windows(content: Mapping[str, Any], family: Family, layers: Any, where: str) -> list[int] | None:
    """1 for each layer with a sliding window, from ``layer_types`` or the family's pattern; None without windows.

    Gemma-3's older files have the pattern as a number under one of two names; transformers reads the first.
    """
    named = content.get("layer_types")
    if named is not None:
        known = set(_LAYER_TYPES) if family.full_every else {"full_attention"}
        if not isinstance(named, list) or len(named) != layers or not set(map(str, named)) <= known:
            raise ConfigError(f"{where}: layer_types do not name {layers} layers", f"edit {where}")
        return [_LAYER_TYPES[each] for each in named] if family.full_every else None
    if type(layers) is not int or family.local_theta is None:
        return family.windows(layers) if type(layers) is int else None
    every = content.get("sliding_window_pattern", family.full_every)
    other = content.get("_sliding_window_pattern", every)
    for pattern in (every, other):
        if type(pattern) is not int or pattern < 1 or pattern != every:
            raise ConfigError(f"{where}: the windows' pattern is {shown(pattern)}, and no layer_types", f"edit {where}")
    return family.windows(layers, every)


def _layer_types(config: Config) -> list[str]:
    windows = (config.sliding_window_indices if config.sliding_window_size else None) or [0] * config.n_layer
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _ropes(content: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """litgpt's fields of the rotary positions, from ``rope_parameters`` (transformers 5) or the older fields."""
    parameters, scaling = (_mapping(content, key, where) for key in ("rope_parameters", "rope_scaling"))
    if not family.local_theta:
        base, adjustments = _rope(scaling or parameters, content.get("rope_theta", family.theta), where)
        return {"rope_base": base, "rope_adjustments": adjustments}
    kinds = {kind: _mapping(parameters, kind, where) for kind in _LAYER_TYPES}
    other = [key for key, value in parameters.items() if key not in kinds and value not in (None, "default")]
    if other:
        raise ConfigError(
            f"{where}: rope_parameters has {shown(other[0])} beside its two kinds of layers", f"edit {where}"
        )
    full = {**kinds["full_attention"], **scaling}
    base, adjustments = _rope(full, content.get("rope_theta", family.theta), where)
    local, scaled = _rope(kinds["sliding_attention"], content.get("rope_local_base_freq", family.local_theta), where)
    if scaled:
        raise ConfigError(f"{where}: scaled rotary positions in layers with a window", "use another model")
    return {"rope_base": base, "rope_adjustments": adjustments, "rope_local_base_freq": local}


def _mapping(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {key} is {shown(found)}, not an object", f"edit {where}")
    return found


def _rope(rope: Mapping[str, Any], default: Any, where: str) -> tuple[float, dict[str, float] | None]:
    """The base and litgpt's adjustments of rotary positions, unscaled or scaled by one factor."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"{where}: rotary positions of type {shown(kind)} are not supported", "use another model")
    known = {"rope_type", "type", "rope_theta", *(["factor"] if kind == "linear" else [])}
    unknown = [key for key, value in rope.items() if key not in known and value is not None]
    if unknown and not (unknown == ["partial_rotary_factor"] and rope[unknown[0]] == 1.0):
        raise ConfigError(f"{where}: rotary positions with {shown(unknown[0])} are not supported", "use another model")
    theta = rope.get("rope_theta", default)
    _require_positive("rope_theta", theta, where)
    theta = int(theta) if theta == int(theta) else theta
    if kind == "default":
        return theta, None
    _require_positive("factor", rope.get("factor"), where)
    return theta, {"factor": float(rope["factor"])}


def _written_ropes(config: Config, family: Family) -> dict[str, Any]:
    """The fields for transformers 4, and ``rope_parameters`` for transformers 5."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_adjustments:
        if set(config.rope_adjustments) != {"factor"}:
            raise ConfigError(f"{config.name}: rotary positions that no config.json of ours describes", "see litgpt")
        scaling = {"rope_type": "linear", "factor": float(config.rope_adjustments["factor"])}
    theta = {"rope_theta": float(config.rope_base)}
    older = {**theta, "rope_scaling": scaling if config.rope_adjustments else None}
    if not family.local_theta:
        return {**older, "rope_parameters": {**scaling, **theta}}
    windows = config.sliding_window_indices if config.sliding_window_size else [0] * config.n_layer
    if config.rope_local_base_freq is None or config.rope_indices != windows:
        raise ConfigError(
            f"{config.name}: layers with a window and layers with local rotary positions are not the same",
            "leave model.overrides.rope_indices out",
        )
    local = float(config.rope_local_base_freq)
    kinds = {
        "full_attention": {**scaling, **theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    return {**older, "rope_local_base_freq": local, "rope_parameters": kinds}
