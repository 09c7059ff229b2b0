"""Where a plan runs: engines behind one small interface.

- ``base``     the interface, and what an engine knows about a run
- ``local``    this machine, detached
- ``keeper``   the process that holds a local run: its parent, its undertaker
- ``skypilot`` machines that SkyPilot rents
- ``notes``    which runs were launched from here onto rented machines
"""

from __future__ import annotations

import os
from pathlib import Path

from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import Engine
from bafogpt.launch.plan import LOCAL


def engine_for(infra: str, settings: Settings) -> Engine:
    """The engine that serves an ``--infra`` value: ``local`` here, everything else SkyPilot."""
    if infra == LOCAL:
        from bafogpt.launch.engines.local import LocalEngine

        return LocalEngine(settings)
    from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine

    return SkyPilotEngine(settings)


def engine_of(name: str, settings: Settings) -> Engine:
    """The engine that holds run ``name``. SkyPilot is asked about a run of which nothing is known here.

    A name that nobody knows goes to the local engine, whose error names the nearest.
    """
    from bafogpt.launch.engines.local import LocalEngine
    from bafogpt.launch.engines.registry import LaunchRegistry

    local = LocalEngine(settings)
    noted = LaunchRegistry(settings).holds(name)
    if not noted and (local.holds(name) or not skypilot_is_used()):
        return local
    return engine_for("rented", settings)


def everywhere(settings: Settings) -> list[Engine]:
    """Every engine that may hold runs."""
    return [engine_for(infra, settings) for infra in ([LOCAL, "rented"] if skypilot_is_used() else [LOCAL])]


def skypilot_is_used() -> bool:
    """Whether anything was ever asked of SkyPilot on this account: asking it starts a server."""
    return bool(os.environ.get("SKYPILOT_API_SERVER_ENDPOINT")) or Path("~/.sky").expanduser().is_dir()
