"""The ``tracking:`` section of a job: its metrics are also sent to Weights & Biases and MLflow.

::

    tracking:
      wandb: {project: zulu}
      mlflow: {uri: https://mlflow.example.org, experiment: zulu}

The originals are in the bucket. Keys come from the environment alone. A process for each service sends the metrics
(:mod:`bafogpt.agent.tracking.sidecar`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from bafogpt.core.errors import BafoError, ConfigError

Service = Literal["wandb", "mlflow"]
SERVICES: tuple[Service, ...] = ("wandb", "mlflow")
"""Also the names of their packages."""
VARIABLES: dict[Service, tuple[str, ...]] = {
    "wandb": ("WANDB_API_KEY", "WANDB_BASE_URL"),
    "mlflow": (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_INSECURE_TLS",
    ),
}
"""Environment variables of each service; a rented machine gets them as secrets."""
LOCAL_SCHEMES = ("", "file", "sqlite")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, or your own server in WANDB_BASE_URL."""

    project: str
    entity: str | None = None
    """User or team; null is the default of WANDB_API_KEY."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` sends nothing and leaves ``wandb/run-ID.wandb`` in the run's bucket, for ``wandb sync``."""

    def __post_init__(self) -> None:
        if not self.project:
            raise ValueError("project is empty; the name of a project")


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """An MLflow tracking server; for local jobs also a folder or ``sqlite:///FILE``."""

    experiment: str
    uri: str | None = None
    """Null is MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        if not self.experiment:
            raise ValueError("experiment is empty; the name of an experiment")
        if self.uri is not None and "@" in urlsplit(self.uri).netloc:  # it would be in the run's record
            raise ValueError("uri holds a name or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Services that get a run's metrics; none by default."""

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    drain_s: float = 15.0
    """How long an ended run waits until its last metrics are sent."""

    def __post_init__(self) -> None:
        if not self.drain_s >= 0:
            raise ValueError(f"drain_s is {self.drain_s}; 0 or more")

    @property
    def services(self) -> tuple[Service, ...]:
        """The configured services."""
        return tuple(service for service in SERVICES if getattr(self, service) is not None)


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run, for a tracking service."""

    service: Service
    config: TrackingConfig
    name: str
    id: str
    """The run's id at the service, the same for all attempts: see :func:`tracker_run_id`."""
    attempt: int
    bucket: str
    """URL of the run's bucket."""
    job: dict[str, Any]
    """The resolved job."""


def tracker_run_id(name: str, created: str) -> str:
    """The name and a digest of the record's creation time, because names can be reused."""
    return f"{name}-{hashlib.sha256(created.encode()).hexdigest()[:8]}"


def variables(config: TrackingConfig, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables of the configured services: the required ones, and others that are set."""
    must = required_env(config)
    online = [service for service in config.services if not (service == "wandb" and _offline(config))]
    return [name for each in online for name in VARIABLES[each] if name in must or environ.get(name)]


def required_env(config: TrackingConfig) -> dict[str, str]:
    """Required variables on a machine without a login, each with the section that needs it."""
    found = {}
    if config.wandb and not _offline(config):
        found["WANDB_API_KEY"] = "tracking.wandb"
    if config.mlflow and config.mlflow.uri is None:
        found["MLFLOW_TRACKING_URI"] = "tracking.mlflow"
    return found


def require_packages(config: TrackingConfig) -> None:
    """Raise :class:`BafoError` where the package of a configured service is not installed."""
    for service in config.services:
        if importlib.util.find_spec(service) is None:
            raise BafoError(f"tracking.{service}: {service} is not installed", "pip install 'bafogpt[tracking]'")


def check_reachable(config: TrackingConfig) -> None:
    """Raise :class:`ConfigError` for a store on this machine, for a run on another."""
    uri = (config.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI")) if config.mlflow else None
    if uri and urlsplit(uri).scheme in LOCAL_SCHEMES:
        raise ConfigError(
            f"tracking.mlflow: {uri} is on this machine; a rented machine cannot reach it",
            "--set tracking.mlflow.uri=https://…",
        )


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text with the values of the services' variables replaced by their names."""
    for name in (name for names in VARIABLES.values() for name in names):
        value = environ.get(name, "")
        if len(value) >= 6:  # shorter ones (true, 1) are no secrets
            text = text.replace(value, f"${name}")
    return text


def _offline(config: TrackingConfig) -> bool:
    return config.wandb is not None and config.wandb.mode == "offline"
