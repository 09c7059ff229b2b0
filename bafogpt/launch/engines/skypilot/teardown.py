"""Nothing rented stays without an end: autodown is looked at after every launch, and ``down`` means gone.

SkyPilot 0.14.1 can lose the autodown of a launch in a race (skypilot #5946), leaves a cluster up whose files could not
be sent, and leaves it up when a cloud answers ``down`` with one 500.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bafogpt.core.errors import AuthError, BafoError, RunNotFoundError
from bafogpt.launch.engines.skypilot.client import Client

TRIES = 3
"""How often a lost autodown is set again before the cluster is ended instead."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is done about a cluster that may cost money with nobody looking."""

    client: Client
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    storage_timeout_s: float = 300.0
    """How long ``down`` is called again while the cluster is not gone."""

    def secure(self, name: str, idle_minutes: int) -> None:
        """See that the cluster ends itself. Raises :class:`BafoError` when it would not, after ending it."""
        for attempt in range(TRIES):
            cluster = self.client.cluster(name)
            if cluster is None or cluster.autodown_minutes is not None:
                return
            if attempt:
                self.sleep(2.0)
            self.client.autodown(name, idle_minutes)
        cluster = self.client.cluster(name)
        if cluster is not None and cluster.autodown_minutes is None:
            self.down(name)
            raise BafoError(
                f"SkyPilot did not keep the autodown of {name}, so it was ended", "bafogpt cloud launch JOB once more"
            )

    def settle(self, name: str, idle_minutes: int) -> None:
        """After a launch that broke off: what is up ends itself, what is half up is gone."""
        deadline = self.clock() + self.storage_timeout_s
        while self.client.launching(name) and self.clock() < deadline:
            self.sleep(2.0)
        cluster = self.client.cluster(name)
        if cluster is None:
            return
        if cluster.status == "UP" and self.client.queue(name):
            self.secure(name, idle_minutes)
        else:
            self.down(name)

    def down(self, name: str) -> None:
        """Terminate the cluster, and again until SkyPilot no longer knows it.

        Raises :class:`AuthError` at once, since no other try can help, and :class:`BafoError` after
        ``storage_timeout_s``."""
        deadline, pause, last = self.clock() + self.storage_timeout_s, 1.0, "it is still there"
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
