"""Publishes committed checkpoints on the Hugging Face Hub while training goes on.

The bucket is what a run lives by; the Hub is a copy for people. So a publication that fails is written down and tried
again with the next checkpoint, and never ends the run.
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
    """A thread that pushes the newest complete checkpoint to one repository of the Hub, private, one commit each.

    Checkpoints that are committed while a push is under way are not queued: the newest one is pushed next.
    """

    def __init__(self, checkpoints: Bucket, target: str, settings: Settings, record: Callable[..., None]) -> None:
        self._checkpoints = checkpoints
        self._target = target
        self._settings = settings
        self._record = record
        self._wanted: int | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="publishing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, step: int) -> None:
        """A checkpoint has been committed."""
        with self._changed:
            self._wanted = step
            self._changed.notify()

    def close(self, timeout_s: float = DRAIN_S) -> bool:
        """Wait until what was offered is published or has failed, at most ``timeout_s``; whether it has."""
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
            try:
                commit = self._push()
                self._record("published", step=step, target=self._target, commit=commit)
            except BafoError as error:
                self._record("publication_failed", step=step, target=self._target, error=error.message)
            except ModuleNotFoundError as error:
                self._record(
                    "publication_failed", step=step, target=self._target, error=f"{error.name} is not installed"
                )

    def _push(self) -> str:
        from bafogpt.storage.folders import sync
        from bafogpt.storage.folders.uri import locate

        plan = sync.prepare(
            locate(self._checkpoints.url, self._settings), locate(self._target, self._settings, base="bucket")
        )
        return sync.execute(plan).commit
