"""Publishes committed checkpoints on the Hugging Face Hub while training goes on.

A publication that fails is recorded and tried again with the next checkpoint; it never ends the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from bafogpt.core.errors import BafoError
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket

DRAIN_S = 600.0
"""How long a finished run waits for its last publication."""


class HubPublisher:
    """A thread that pushes the newest complete checkpoint to one private repository of the Hub, one commit each.

    Checkpoints committed during a push are not queued: the newest one is pushed next.
    """

    def __init__(self, checkpoints: Bucket, target: str, settings: Settings, event: Callable[..., None]) -> None:
        self._checkpoints = checkpoints
        self._target = target
        self._settings = settings
        self._event = event
        self._wanted: int | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="hub publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, step: int) -> None:
        """Publish the newest checkpoint, of ``step`` or later, as soon as possible."""
        with self._changed:
            self._wanted = step
            self._changed.notify()

    def close(self, timeout_s: float = DRAIN_S) -> bool:
        """Wait until the last publication has succeeded or failed, at most ``timeout_s``; whether it has."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closing)
                step, self._wanted = self._wanted, None
            if step is None:
                return
            about = {"step": step, "target": self._target}
            try:
                self._event("published", **about, commit=self._push())
            except BafoError as error:
                self._event("publication_failed", **about, error=error.message)
            except ModuleNotFoundError as error:
                self._event("publication_failed", **about, error=f"{error.name} is not installed")

    def _push(self) -> str:
        from bafogpt.folders import sync
        from bafogpt.folders.uri import locate

        source = locate(self._checkpoints.url, self._settings)
        return sync.execute(sync.prepare(source, locate(self._target, self._settings, base="bucket"))).commit
