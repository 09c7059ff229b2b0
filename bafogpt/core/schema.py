"""Strict dataclasses from YAML and JSON.

Configuration is a tree of frozen dataclasses, each beside the code it configures. :func:`build` makes one from plain
mappings and raises for unknown keys; :func:`merge` overrides one mapping with another; :func:`parse_assignment` reads
``--set train.seed=7``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from bafogpt.core.errors import ConfigError, CorruptError, did_you_mean

T = TypeVar("T")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises :class:`ConfigError` naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "ls jobs sky") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", f"file {path}") from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in YAML ``text``; empty for an empty text."""
    import yaml  # 40 ms that --help need not spend

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{where}{line}: {problem}", f"edit {where}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is a {type(value).__name__}, not a mapping of keys to values", f"edit {where}")
    return value


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``. Raises :class:`CorruptError`; ``where`` names the file."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: not JSON ({error})", f"head -c 200 {where}") from None
    if not isinstance(content, dict):
        raise CorruptError(f"{where}: not a JSON object", f"head -c 200 {where}")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``over``: mappings merge key by key, other values are replaced."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def parse_assignment(text: str) -> dict[str, Any]:
    """``"train.seed=7"`` as ``{"train": {"seed": 7}}``; the value is read as YAML."""
    import yaml

    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: not KEY=VALUE", "--set optimizer.learning_rate=1e-4")
    try:
        value: Any = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not valid YAML", f"--set '{path}=\"…\"'") from None
    for key in reversed(keys):
        value = {key: value}
    return typing.cast(dict[str, Any], value)


def build(cls: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """An instance of the dataclass ``cls`` from plain ``values``.

    Raises :class:`ConfigError`, naming ``where`` and the dotted key, for unknown and missing keys, wrong types and a
    :class:`ValueError` of ``__post_init__``.
    """
    fields = _fields_of(cls)  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'{did_you_mean(str(key), fields)}", f"edit {where}")
    arguments = {}
    for name, (hint, is_required) in fields.items():
        if name in values:
            arguments[name] = _convert(hint, values[name], where, f"{prefix}{name}")
        elif is_required:
            raise ConfigError(f"{where}: '{prefix}{name}' is missing", f"edit {where}")
    try:
        return cls(**arguments)
    except ValueError as error:
        section = f" ({prefix.rstrip('.')})" if prefix else ""
        raise ConfigError(f"{where}{section}: {error}", f"edit {where}") from None


@functools.cache
def _fields_of(cls: type[Any]) -> dict[str, tuple[Any, bool]]:
    """Name → (type, whether it must be given) of the fields of a dataclass."""
    hints, missing = typing.get_type_hints(cls), dataclasses.MISSING
    fields = (field for field in dataclasses.fields(cls) if field.init)
    return {each.name: (hints[each.name], each.default is each.default_factory is missing) for each in fields}


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of :func:`build`."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one flat mapping with dotted keys; empty mappings are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """``value`` as the type ``hint``. Raises :class:`ConfigError` naming ``key`` and the expected type."""

    def wrong(expected: str) -> ConfigError:
        return ConfigError(f"{where}: '{key}' is {value!r}, expected {expected}", f"edit {where}")

    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where, key)
    if origin is Literal:
        if value in get_args(hint):
            return value
        allowed = ", ".join(str(option) for option in get_args(hint))
        raise wrong(f"one of {allowed}{did_you_mean(str(value), map(str, get_args(hint)))}")
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise wrong("a list")
        item = get_args(hint)[0]
        items = [_convert(item, each, where, f"{key}[{i}]") for i, each in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong("a mapping")
        kind = get_args(hint)[1]
        return {str(name): _convert(kind, each, where, f"{key}.{name}") for name, each in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong("a mapping")
        return build(typing.cast(type[Any], hint), value, where, prefix=f"{key}.")
    return _scalar(hint, value, wrong)


def _scalar(hint: Any, value: Any, wrong: Any) -> Any:
    """A bool, int, float or str. YAML reads ``1e-4`` as text; an integer is a valid float."""
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if hint is str and isinstance(value, str):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise wrong(names.get(hint, str(hint)))
