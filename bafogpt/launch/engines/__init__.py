"""Where a plan runs: engines behind one small interface.

- ``base``         the interface, and the state of a run as an engine sees it
- ``local``        this machine, detached from the terminal
- ``local_runner`` the process that runs a local task
- ``skypilot``     machines that SkyPilot rents
- ``registry``     which runs were launched from here onto rented machines
"""

from __future__ import annotations

import os
from pathlib import Path

from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import Engine
from bafogpt.launch.plan import LOCAL


def engine_for(infra: str, settings: Settings) -> Engine:
    """The engine of an ``--infra`` value: ``local``, or SkyPilot for everything else."""
    if infra == LOCAL:
        from bafogpt.launch.engines.local import LocalEngine

        return LocalEngine(settings)
    from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine

    return SkyPilotEngine(settings)


def engine_of(name: str, settings: Settings) -> Engine:
    """The engine of run ``name``: SkyPilot unless only this machine can have it.

    An unknown name goes to the local engine, whose error suggests the nearest.
    """
    from bafogpt.launch.engines.local import LocalEngine
    from bafogpt.launch.engines.registry import LaunchRegistry

    local = LocalEngine(settings)
    if not LaunchRegistry(settings).has(name) and (local.has(name) or not skypilot_is_used()):
        return local
    return engine_for("rented", settings)


def everywhere(settings: Settings) -> list[Engine]:
    """Every engine that may have runs."""
    return [engine_for(infra, settings) for infra in ([LOCAL, "rented"] if skypilot_is_used() else [LOCAL])]


def skypilot_is_used() -> bool:
    """Whether this account has used SkyPilot: asking it starts a server."""
    return bool(os.environ.get("SKYPILOT_API_SERVER_ENDPOINT")) or Path("~/.sky").expanduser().is_dir()
