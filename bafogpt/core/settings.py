"""Settings: bucket, endpoint, folder of local state; and where each value comes from.

In order of precedence: flag, environment (``BAFOGPT_BUCKET``), project file (``bafogpt.toml``, or ``[tool.bafogpt]`` in
``pyproject.toml``, in this folder or one above), user file (``$XDG_CONFIG_HOME/bafogpt/config.toml``), default.
``bafogpt config show`` prints each value with its source.

Secrets are not settings: they are read from the environment (``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``) where they are
used, and never stored.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError

EMBEDDED = "embedded"
"""Value of ``s3_endpoint`` for the embedded S3 server (``bafogpt storage serve``)."""


def _default_home() -> str:
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "bafogpt")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings for all jobs of a user."""

    bucket: str = "s3://bafogpt"
    """Bucket of data, runs and models: ``s3://NAME[/PREFIX]`` or ``file:///FOLDER``."""
    s3_endpoint: str = EMBEDDED
    """URL of the S3 server; ``embedded`` for this machine's; empty for AWS."""
    s3_region: str = "us-east-1"
    """Region name sent to the S3 server."""
    infra: str = "local"
    """Default of ``cloud launch --infra``: ``local``, or an infra of SkyPilot."""
    home: str = field(default_factory=_default_home)
    """Folder of local state: runs started here, the embedded server's data, caches."""
    zar_per_usd: float = 18.0
    """Exchange rate for costs in rand."""
    zar_per_usd_date: str = "2026-11-24"
    """Date of that rate, shown with costs in rand."""
    s3_timeout_s: float = 30.0
    """Seconds for which a request to the bucket is retried before the bucket counts as unreachable."""


@dataclass(frozen=True)
class SettingOrigin:
    """Where one setting's value comes from."""

    name: str
    value: Any
    source: str


def load(flags: Mapping[str, Any] | None = None, cwd: Path | None = None) -> Settings:
    """The effective settings. ``flags`` are the command line's values; ``None`` means not given."""
    values = {origin.name: origin.value for origin in origins(flags, cwd) if origin.source != "default"}
    return schema.build(Settings, values, where="settings")


def origins(flags: Mapping[str, Any] | None = None, cwd: Path | None = None) -> list[SettingOrigin]:
    """Every setting with its value and source."""
    layers = [*_layers(flags or {}, cwd or Path.cwd()), ("default", asdict(Settings()))]
    found: dict[str, SettingOrigin] = {}
    for source, values in reversed(layers):
        found |= {name: SettingOrigin(name, value, source) for name, value in values.items() if value is not None}
    return _without_embedded([found[each.name] for each in fields(Settings)])


def _without_embedded(found: list[SettingOrigin]) -> list[SettingOrigin]:
    """The embedded server is the default only if neither bucket nor endpoint is set."""
    by_name = {origin.name: origin for origin in found}
    if by_name["s3_endpoint"].source != "default":
        return found
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(variable):
            endpoint = SettingOrigin("s3_endpoint", os.environ[variable], f"environment {variable}")
            break
    else:
        if by_name["bucket"].source == "default":
            return found
        endpoint = SettingOrigin("s3_endpoint", "", "default (a bucket is named)")
    return [endpoint if origin.name == "s3_endpoint" else origin for origin in found]


def _layers(flags: Mapping[str, Any], cwd: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(source, values) by precedence, checked for unknown keys."""
    yield "flag", flags
    hints = typing.get_type_hints(Settings)
    for name in hints:
        raw = os.environ.get(f"BAFOGPT_{name.upper()}")
        if raw is not None:
            yield f"environment BAFOGPT_{name.upper()}", {name: raw}
    for path, values in _files(cwd):
        for key in values:
            if key not in hints:
                schema.build(Settings, {key: values[key]}, where=str(path))  # raises, with "did you mean"
        yield str(path), values


def _files(cwd: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The existing settings files: the nearest project file, then the user's."""
    for folder in (cwd, *cwd.parents):
        own, project = folder / "bafogpt.toml", folder / "pyproject.toml"
        if own.is_file():
            yield own, _read_toml(own)
            break
        if project.is_file():
            table = _read_toml(project).get("tool", {}).get("bafogpt")
            if table is not None:
                yield project, table
                break
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    user = Path(base) / "bafogpt" / "config.toml"
    if user.is_file():
        yield user, _read_toml(user)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", f"edit {path}") from None
