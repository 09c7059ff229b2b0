"""Carries saved checkpoints from local disk to the bucket while training goes on."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from bafogpt.cloud.recorder import Failing
from bafogpt.core.errors import BafoError, ConflictError, CorruptError, StorageError
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.handoff import Handoff, StagedCheckpoint, checkpoint_step, read_staged

log = logging.getLogger(__name__)
POLL_S = 0.1
RETRY_S = 2.0
BEST = "validation_loss"
"""What the best checkpoint has the lowest of, in the trainer's metadata and in the manifest's."""


class Uploader:
    """A thread that sends whole checkpoints, oldest first, and then drops them from local disk.

    A bucket that cannot be reached is tried again and again; ``failing`` says since when and why, and the supervisor
    decides how long that may go on. Nothing leaves local disk before its manifest is committed.
    """

    def __init__(
        self,
        handoff: Handoff,
        store: CheckpointStore,
        config: CheckpointConfig,
        attempt: int,
        record: Callable[..., None],
        ship: Callable[[], None],
    ) -> None:
        self._handoff = handoff
        self._store = store
        self._config = config
        self._attempt = attempt
        self._record = record
        self._ship = ship
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self.failing: Failing | None = None

    def start(self) -> None:
        self._thread.start()

    def idle(self) -> bool:
        """Whether nothing waits on local disk."""
        return not self._handoff.pending()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything saved is committed (True) or the time is over (False), then stop."""
        deadline = time.monotonic() + timeout_s
        while not self.idle() and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(POLL_S)
        drained = self.idle()
        self._closing.set()
        self._thread.join(timeout=30)
        return drained

    def _run(self) -> None:
        while not self._closing.is_set():
            pending = self._handoff.pending()
            if not pending:
                self._closing.wait(POLL_S)
                continue
            step = checkpoint_step(pending[0])
            try:
                staged = read_staged(pending[0])
            except CorruptError as error:  # a disk that lost power: the checkpoint before it is the newest
                self._record("checkpoint_discarded", step=step, error=error.message)
                self._handoff.drop(pending[0])
                continue
            try:
                self._send(staged)
                self.failing = None
            except StorageError as error:
                if self.failing is None:
                    self._record("upload_failed", step=step, error=error.message)
                self.failing = Failing(self.failing.since if self.failing else time.monotonic(), error)
                self._closing.wait(RETRY_S)
            except BafoError as error:
                self.failing = Failing(float("-inf"), error)  # no use in trying again
                self._record("upload_failed", step=step, error=error.message)
                return
            except Exception as error:  # a defect: the run ends with it instead of waiting for ever
                message = f"the upload of step {step} failed unexpectedly: {type(error).__name__}: {error}"
                self.failing = Failing(float("-inf"), BafoError(message, "report it"))
                log.exception("%s", message)
                return

    def _send(self, staged: StagedCheckpoint) -> None:
        """One checkpoint: files, verification, manifest; then what is too old goes, here and there."""
        self._ship()  # the metrics of its steps: once it is committed nobody does these steps again
        start = time.monotonic()
        upload_id = f"a{self._attempt:04d}-{uuid.uuid4().hex[:8]}"
        try:
            sent = self._store.upload(
                staged.folder,
                step=staged.step,
                samples=staged.samples,
                upload_id=upload_id,
                metadata={"attempt": self._attempt, BEST: staged.metadata.get(BEST)},
            )
        except ConflictError as error:
            # another attempt committed this step already; that one is complete, so this copy is of no use
            log.warning("%s", error.message)
            self._handoff.drop(staged.folder)
            return
        self._record(
            "checkpoint_committed",
            step=staged.step,
            samples=staged.samples,
            bytes=sum(each.bytes for each in sent.files),
            seconds=round(time.monotonic() - start, 3),
        )
        self._handoff.drop(staged.folder)
        config = self._config
        removed = self._store.retain(config.keep_last, config.keep_every, BEST if config.keep_best else None)
        if removed:
            self._record("checkpoints_removed", steps=removed)
