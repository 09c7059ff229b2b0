"""Manifests: JSON objects that name their format and carry a digest of their own content."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping
from typing import Any, TypeVar

from bafogpt.core import digest, schema
from bafogpt.core.errors import ConfigError, CorruptError

T = TypeVar("T")
MAX_BYTES = 512 << 20
"""A larger file is not parsed; the manifest of 10^12 tokens has about 60 MB."""
MAX_MESSAGE = 300
"""Characters of an error about a file's content; longer ones are cut."""


def to_plain(value: Any) -> Any:
    """``value`` as JSON types, without the empty fields that :func:`schema.build` makes empty again."""
    if dataclasses.is_dataclass(value):
        pairs = ((each, getattr(value, each.name)) for each in dataclasses.fields(value))
        return {each.name: to_plain(content) for each, content in pairs if content or not _is_default(each, content)}
    if isinstance(value, Mapping):
        return {key: to_plain(content) for key, content in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def digest_of(plain: Mapping[str, Any], undigested: Container[str] = ()) -> str:
    """The digest of a manifest's content but its own digest and the keys in ``undigested``."""
    return digest.of_json({key: each for key, each in plain.items() if key != "digest" and key not in undigested})


def encode(manifest: Any, form: str, *, undigested: Container[str] = (), indent: int | None = None) -> bytes:
    """The dataclass ``manifest`` as JSON in the format ``form``."""
    plain = {"format": form, **to_plain(manifest)}
    return json.dumps({**plain, "digest": digest_of(plain, undigested)}, indent=indent, sort_keys=True).encode()


def format_of(data: bytes) -> str:
    """The ``format`` that JSON names; empty where it names none or is not an object."""
    raw = _load(data)
    return str(raw.get("format") or "")[:MAX_MESSAGE] if isinstance(raw, dict) else ""


def parse(cls: type[T], data: bytes, where: str, *, form: str, hint: str, undigested: Container[str] = ()) -> T:
    """Read what :func:`encode` wrote as a ``cls``; ``where`` names it in errors.

    Raises :class:`CorruptError`, one line of bounded length, for anything else.
    """
    raw = _load(data)
    if not isinstance(raw, dict):
        raise CorruptError(f"{where}: not a JSON object", hint)
    found = str(raw.pop("format", ""))[:MAX_MESSAGE]
    if found != form:
        is_ours = found.startswith(f"{form.partition('/')[0]}/")
        message = f"{where}: format {found!r}, this version reads {form!r}"
        raise CorruptError(message, "pip install --upgrade bafogpt" if is_ours else hint)
    if raw.pop("digest", None) != digest_of({"format": form, **raw}, undigested):
        raise CorruptError(f"{where}: the manifest does not match its digest", hint)
    try:
        return schema.build(cls, raw, where)
    except ConfigError as error:
        raise CorruptError(error.message[: len(where) + MAX_MESSAGE], hint) from None


def _load(data: bytes) -> Any:
    """The JSON value; ``None`` if the data is not JSON."""
    try:
        return json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        return None


def _is_default(field: dataclasses.Field[Any], content: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(content == field.default_factory())
    return bool(content == field.default)
