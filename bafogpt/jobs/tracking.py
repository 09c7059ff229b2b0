"""A run's metrics sent on to Weights & Biases and MLflow: the ``tracking:`` section of a job, and what it needs.

::

    tracking:
      wandb: {project: zulu}
      mlflow: {uri: https://mlflow.example.org, experiment: zulu}

The bucket is what a run lives by; these are copies for people. Keys come from the environment alone. Who sends is a
process beside the run for each service, see :mod:`bafogpt.agent.tracking.sidecar`.
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
MODULES: dict[Service, str] = {"wandb": "wandb", "mlflow": "mlflow"}
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
"""What each service reads from the environment; a rented machine is given it as secrets are, by name."""
LOCAL_SCHEMES = ("", "file", "sqlite")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, or a server of one's own that WANDB_BASE_URL names."""

    project: str
    entity: str | None = None
    """User or team; none is the default one of WANDB_API_KEY."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` sends nothing: at its end the run's bucket has ``wandb/run-ID.wandb`` for ``wandb sync``."""

    def __post_init__(self) -> None:
        if not self.project:
            raise ValueError("project is empty; the name of a project")


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """An MLflow tracking server; for jobs on this machine also a folder or ``sqlite:///FILE``."""

    experiment: str
    uri: str | None = None
    """None is what MLFLOW_TRACKING_URI says."""

    def __post_init__(self) -> None:
        if not self.experiment:
            raise ValueError("experiment is empty; the name of an experiment")
        if self.uri is not None and "@" in urlsplit(self.uri).netloc:  # it would stand in the run's record
            raise ValueError("uri holds a name or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's metrics are sent on to; nowhere by default."""

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    drain_s: float = 15.0
    """How long an ended run waits for its last metrics to be sent on."""

    def __post_init__(self) -> None:
        if not self.drain_s >= 0:
            raise ValueError(f"drain_s is {self.drain_s}; 0 or more")

    @property
    def services(self) -> tuple[Service, ...]:
        """Those that are asked for."""
        return tuple(service for service in MODULES if getattr(self, service) is not None)


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run as a tracking service is told of it."""

    service: Service
    config: TrackingConfig
    name: str
    id: str
    """What the run is known by at the service, over all its attempts: see :func:`tracker_run_id`."""
    attempt: int
    bucket: str
    """URL of the bucket that the run is in."""
    job: dict[str, Any]
    """The resolved job."""


def tracker_run_id(name: str, created: str) -> str:
    """The name, and a digest of when its record was first written: a name may be used again, by another run."""
    return f"{name}-{hashlib.sha256(created.encode()).hexdigest()[:8]}"


def variables(config: TrackingConfig, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The environment's variables that matter to what is asked for: those that are needed, and others that are set."""
    must = required_env(config)
    online = [service for service in config.services if not (service == "wandb" and _offline(config))]
    return [name for each in online for name in VARIABLES[each] if name in must or environ.get(name)]


def required_env(config: TrackingConfig) -> dict[str, str]:
    """Those without which nothing can be sent from a machine where nobody has logged in, and what needs them."""
    found = {}
    if config.wandb and not _offline(config):
        found["WANDB_API_KEY"] = "tracking.wandb"
    if config.mlflow and config.mlflow.uri is None:
        found["MLFLOW_TRACKING_URI"] = "tracking.mlflow"
    return found


def require(config: TrackingConfig) -> None:
    """Raise :class:`BafoError` where this machine lacks the package of a service that is asked for."""
    for service in config.services:
        if importlib.util.find_spec(MODULES[service]) is None:
            raise BafoError(f"tracking.{service}: {service} is not installed", "pip install 'bafogpt[tracking]'")


def check_reachable(config: TrackingConfig) -> None:
    """Raise :class:`ConfigError` for a store that is on this machine, where the run is on another."""
    uri = (config.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI")) if config.mlflow else None
    if uri and urlsplit(uri).scheme in LOCAL_SCHEMES:
        raise ConfigError(
            f"tracking.mlflow: {uri} is on this machine; a rented one cannot see it",
            "--set tracking.mlflow.uri=https://…",
        )


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text without the values of any of the services' variables."""
    for name in (name for names in VARIABLES.values() for name in names):
        value = environ.get(name, "")
        if len(value) >= 6:  # shorter ones (true, 1) are no secrets, and stand in many words
            text = text.replace(value, f"${name}")
    return text


def _offline(config: TrackingConfig) -> bool:
    return config.wandb is not None and config.wandb.mode == "offline"
