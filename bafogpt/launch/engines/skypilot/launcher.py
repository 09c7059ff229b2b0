"""A launch: from the request until the job runs; or, when it fails, until everything it rented is returned."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bafogpt.core.errors import BafoError
from bafogpt.jobs import task as tasks
from bafogpt.launch import code_snapshot
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot import launch_watchdog, task_config
from bafogpt.launch.engines.skypilot.client import Client
from bafogpt.launch.engines.skypilot.errors import CapacityError, MachineError, NotOfferedError
from bafogpt.launch.engines.skypilot.teardown import Teardown
from bafogpt.launch.plan import Plan

Secrets: TypeAlias = list[tuple[str, str]]
"""Names and values; they travel in the request alone."""
MAX_RENTALS = 2
"""How many machines are tried if SkyPilot cannot set one up. SkyPilot 0.14.1 can leave the last cluster's folder on a
Slurm node half removed, because the removal ends with the job; the next teardown removes it."""


@dataclass(frozen=True)
class Launcher:
    """Rents what a plan asks for."""

    client: Client
    teardown: Teardown
    registry: LaunchRegistry

    def launch(self, plan: Plan, secrets: Secrets) -> None:
        """Rent, send the code, start the job. Raises what :func:`~.errors.explain` makes of SkyPilot's errors."""
        self.registry.write(plan.name, infra=plan.infra, managed=plan.managed)
        task = task_config.rented(plan, code_snapshot.export(plan.root, self.registry.code(plan.name)))
        if plan.managed:
            self._launch_managed(task, secrets, plan.name)
            return
        idle = task_config.idle_minutes(plan.task)
        with launch_watchdog.watching(plan.name, idle, self.registry.log(plan.name)) as release:
            self._launch_cluster(task, secrets, plan, idle, release)
        self.registry.drop_code(plan.name)

    def _launch_managed(self, task: dict[str, Any], secrets: Secrets, name: str) -> None:
        try:
            self.client.wait(self.client.launch_managed(task, secrets, name), name)
        except BafoError:
            if not self.client.managed_jobs(name):
                self.registry.remove(name)
            raise

    def _launch_cluster(
        self, task: dict[str, Any], secrets: Secrets, plan: Plan, idle: int, release: Callable[[], None]
    ) -> None:
        """``release`` releases the watchdog: called once nothing is left without an end."""
        for left in reversed(range(MAX_RENTALS)):
            request = None
            try:
                request = self.client.launch(task, secrets, plan.name, idle, plan.retry_until_up)
                self.client.wait(request, plan.name)
                self.teardown.ensure_autodown(plan.name, idle)
                break
            except BaseException as error:
                if request is not None:
                    self._return_machines(request, error, plan.name, idle)
                if left and isinstance(error, MachineError):
                    print(f"{error.message}; trying another machine", file=sys.stderr)
                    continue
                release()
                self.registry.remove(plan.name)
                if isinstance(error, NotOfferedError):
                    raise self._with_offers(error, plan) from error
                raise
        release()

    def _return_machines(self, request: str, error: BaseException, name: str, idle: int) -> None:
        """Return what a failed launch has rented."""
        print(f"the launch of {name} failed; its machines are released", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(BafoError):
                self.client.abandon(request)
        self.teardown.clean_up(name, idle)

    def _with_offers(self, error: NotOfferedError, plan: Plan) -> CapacityError:
        """The error with the cloud's offers of similar names."""
        wanted = tasks.accelerators(plan.task)
        if wanted is None:
            return error
        with contextlib.suppress(BafoError):
            offers = self.client.offers(plan.infra)
            similar = [offer for offer in offers if offer.startswith(wanted[0][:2])] or offers
            if similar:
                nearest = min(similar, key=lambda offer: abs(float(offer.partition(":")[2]) - wanted[1]))
                message = f"{plan.infra} has no {wanted[0]}:{wanted[1]}; it has {', '.join(similar[:8])}"
                return CapacityError(message, f"--gpus {nearest}")
        return error
