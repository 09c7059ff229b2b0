"""A launch, from the request until the machine is at work; or until what it had rented is given back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bafogpt.core.errors import BafoError
from bafogpt.jobs import task as task_files
from bafogpt.launch import code_snapshot
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot import launch_watchdog, task_config
from bafogpt.launch.engines.skypilot.client import Client
from bafogpt.launch.engines.skypilot.errors import CapacityError, MachineError
from bafogpt.launch.engines.skypilot.teardown import Guard
from bafogpt.launch.plan import Plan

Secrets: TypeAlias = list[tuple[str, str]]
"""Names and values, which travel in the request alone."""
RENTALS = 2
"""How often a machine is rented if SkyPilot cannot make it ready. The end of the last cluster of its name may have
left its folder on a Slurm node half removed: 0.14.1 ends the removal with the job. The next end removes it."""


@dataclass(frozen=True)
class Launcher:
    """Rents what a plan asks for. Whatever breaks a launch off, nothing stays rented without an end."""

    client: Client
    guard: Guard
    notes: LaunchRegistry

    def launch(self, plan: Plan, secrets: Secrets) -> None:
        """Rent, send the code, start the job. Raises what :func:`~.failures.explain` makes of SkyPilot's errors."""
        idle = task_config.idle_minutes(plan.task)
        self.notes.write(plan.name, infra=plan.infra, managed=plan.managed)
        task = task_config.rented(plan, code_snapshot.export(plan.root, self.notes.code(plan.name)))
        if plan.managed:
            self._managed(task, secrets, plan.name)
            return
        with launch_watchdog.watching(plan.name, idle, self.notes.log(plan.name)) as release:
            self._cluster(task, secrets, plan, idle, release)
        self.notes.drop_code(plan.name)

    def _managed(self, task: dict[str, Any], secrets: Secrets, name: str) -> None:
        try:
            self.client.wait(self.client.launch_managed(task, secrets, name), name)
        except BafoError:
            if not self.client.managed_jobs(name):
                self.notes.remove(name)
            raise

    def _cluster(
        self, task: dict[str, Any], secrets: Secrets, plan: Plan, idle: int, release: Callable[[], None]
    ) -> None:
        """``release`` lets the watchman go: nothing needs him any more."""
        for left in reversed(range(RENTALS)):
            request = None
            try:
                request = self.client.launch(task, secrets, plan.name, idle, plan.retry_until_up)
                self.client.wait(request, plan.name)
                self.guard.secure(plan.name, idle)
                break
            except BaseException as error:
                if request is not None:
                    self._give_back(request, error, plan.name, idle)
                if left and isinstance(error, MachineError):
                    print(f"{error.message}; once more", file=sys.stderr)
                    continue
                release()
                self.notes.remove(plan.name)
                if isinstance(error, CapacityError):
                    raise self._with_offers(error, plan) from error
                raise
        release()

    def _give_back(self, request: str, error: BaseException, name: str, idle: int) -> None:
        """What a launch that broke off has rented."""
        print(f"the launch of {name} broke off; whatever it has rented is given back", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(BafoError):
                self.client.abandon(request)
        self.guard.settle(name, idle)

    def _with_offers(self, error: CapacityError, plan: Plan) -> CapacityError:
        """The error with what is offered under a name like the one that was asked for."""
        asked = task_files.accelerators(plan.task)
        if asked is None or not error.message.startswith("nobody offers"):
            return error
        with contextlib.suppress(BafoError):
            offers = self.client.offers(plan.infra)
            like = [offer for offer in offers if offer.startswith(asked[0][:2])] or offers
            if like:
                nearest = min(like, key=lambda offer: abs(float(offer.partition(":")[2]) - asked[1]))
                shown = ", ".join(like[:8])
                return CapacityError(f"{plan.infra} has no {asked[0]}:{asked[1]}; it has {shown}", f"--gpus {nearest}")
        return error
