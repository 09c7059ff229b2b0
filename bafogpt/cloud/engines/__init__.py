"""Where a plan runs: engines behind one small interface.

- ``base``     the interface, and what an engine knows about a run
- ``local``    this machine, detached
- ``keeper``   the process that holds a local run: its parent, its undertaker
- ``skypilot`` machines that SkyPilot rents
"""

from __future__ import annotations

from bafogpt.cloud.engines.base import Engine
from bafogpt.cloud.plan import LOCAL
from bafogpt.core.settings import Settings


def engine_for(infra: str, settings: Settings) -> Engine:
    """The engine that serves an ``--infra`` value: ``local`` here, everything else SkyPilot."""
    if infra == LOCAL:
        from bafogpt.cloud.engines.local import LocalEngine

        return LocalEngine(settings)
    from bafogpt.cloud.engines.skypilot import SkyPilotEngine

    return SkyPilotEngine(settings)
