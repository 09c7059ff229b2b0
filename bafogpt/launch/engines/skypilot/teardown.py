"""No rented machine stays without an end: autodown is verified after every launch, and ``down`` means gone.

SkyPilot 0.14.1 can lose the autodown of a launch in a race (skypilot #5946), leaves a cluster up when files could not
be sent, and leaves it up when a cloud answers ``down`` with one 500.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bafogpt.core.errors import AuthError, BafoError, RunNotFoundError
from bafogpt.launch.engines.skypilot.client import Client

AUTODOWN_TRIES = 3
"""How often a lost autodown is set again before the cluster is terminated instead."""


@dataclass(frozen=True, kw_only=True)
class Teardown:
    """Gives clusters an end, or terminates them."""

    client: Client
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    timeout_s: float = 300.0
    """How long ``down`` is repeated while the cluster is not gone."""

    def ensure_autodown(self, name: str, idle_minutes: int) -> None:
        """Verify the cluster's autodown. Without one the cluster is terminated and :class:`BafoError` raised."""
        for attempt in range(AUTODOWN_TRIES + 1):
            cluster = self.client.cluster(name)
            if cluster is None or cluster.autodown_minutes is not None:
                return
            if attempt < AUTODOWN_TRIES:
                if attempt:
                    self.sleep(2.0)
                self.client.autodown(name, idle_minutes)
        self.down(name)
        message = f"SkyPilot did not keep the autodown of {name}, so the cluster was terminated"
        raise BafoError(message, "bafogpt cloud launch JOB")

    def clean_up(self, name: str, idle_minutes: int) -> None:
        """After a failed launch: a run that came up gets its autodown, anything else is terminated."""
        deadline = self.clock() + self.timeout_s
        while self.client.launching(name) and self.clock() < deadline:
            self.sleep(2.0)
        cluster = self.client.cluster(name)
        if cluster is None:
            return
        if cluster.status == "UP" and self.client.queue(name):
            self.ensure_autodown(name, idle_minutes)
        else:
            self.down(name)

    def down(self, name: str) -> None:
        """Terminate the cluster, repeated until SkyPilot has no record of it.

        Raises :class:`AuthError` at once, since no retry can help, and :class:`BafoError` after ``timeout_s``.
        """
        deadline, pause, last = self.clock() + self.timeout_s, 1.0, "SkyPilot still lists it"
        while True:
            try:
                self.client.down(name)
                if self.client.cluster(name) is None:
                    return
            except RunNotFoundError:
                return
            except AuthError:
                raise
            except BafoError as error:
                last = error.message
            if self.clock() + pause > deadline:
                raise BafoError(f"{name} is still up: {last}", f"bafogpt cloud down {name}; bafogpt cloud reap")
            self.sleep(pause)
            pause = min(30.0, pause * 2)
