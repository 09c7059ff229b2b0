"""The SkyPilot engine: machines rented by the hour.

Not in this version: every call says so, and how the same task is launched with SkyPilot's own command meanwhile. The
task that ``bafogpt cloud launch --dry-run`` prints is complete for that.
"""

from __future__ import annotations

from collections.abc import Iterator

from bafogpt.cloud.engines.base import EngineRun
from bafogpt.cloud.plan import Plan
from bafogpt.core.errors import BafoError
from bafogpt.core.settings import Settings


class SkyPilotEngine:
    """Holds the engine's place behind :class:`~bafogpt.cloud.engines.base.Engine`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        raise _not_yet(
            f"launching on {plan.infra}", "bafogpt cloud launch JOB --dry-run > task.yaml; sky launch task.yaml"
        )

    def runs(self) -> list[EngineRun]:
        return []

    def status(self, name: str) -> EngineRun:
        raise _not_yet("cloud status of rented machines", "sky status")

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        raise _not_yet("logs of rented machines", f"sky logs {name}")

    def shell(self, name: str) -> list[str]:
        return ["ssh", name]  # SkyPilot writes the host into the user's ssh configuration

    def cancel(self, name: str) -> EngineRun:
        raise _not_yet("cancelling on rented machines", f"sky cancel {name}")

    def down(self, name: str) -> None:
        raise _not_yet("taking down rented machines", f"sky down {name}")


def _not_yet(what: str, instead: str) -> BafoError:
    return BafoError(f"{what} is not in this version of bafogpt", instead)
