"""The machine and the software versions of an attempt, for the run's record. No heavy package is imported for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from bafogpt import __version__
from bafogpt.agent import system_stats
from bafogpt.agent.preflight import torch_cuda
from bafogpt.core import nvidia_smi

PACKAGES = (
    *("torch", "lightning", "litgpt", "tokenizers", "safetensors", "numpy", "bitsandbytes"),
    *("obstore", "boto3", "smart-open", "huggingface-hub", "skypilot"),
)
"""Packages that can change a run's numbers, or how its bytes travel."""


def machine(
    attempt: int,
    *,
    infra: str,
    price_per_hour: float,
    environment: Mapping[str, str] = os.environ,
    gpus: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The machine of an attempt: its own figures, and SkyPilot's description of it.

    ``unfit`` (why) and ``hint`` are added later, where the machine could not run the job.
    """
    gpus = nvidia_smi.gpus() if gpus is None else gpus
    try:
        cluster = json.loads(environment.get("SKYPILOT_CLUSTER_INFO") or "{}")
    except ValueError:
        cluster = {}
    cluster = cluster if isinstance(cluster, dict) else {}
    return {
        "attempt": attempt,
        "host": platform.node(),
        "infra": infra,
        **{key: str(cluster.get(key) or "") for key in ("cloud", "region", "zone")},
        "nodes": int(environment.get("SKYPILOT_NUM_NODES") or 1),
        "gpu": " + ".join(sorted({str(each["name"]) for each in gpus})),
        "gpus": len(gpus),
        "driver": str(gpus[0].get("driver") or "") if gpus else "",
        "cpus": system_stats.cpu_quota() or os.cpu_count() or 1,
        "memory": system_stats.memory()[1],
        "os": platform.platform(),
        "price_per_hour": price_per_hour,
    }


def versions() -> dict[str, str]:
    """Of bafogpt, Python, the installed ones of :data:`PACKAGES`, and the CUDA that torch was built for."""
    found = {"bafogpt": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda = torch_cuda() if "torch" in found else ""
    return {**found, "cuda": cuda} if cuda else found
