"""Carries saved checkpoints from local disk to the bucket while training goes on.

Where a run has more nodes than one, each saves the files of its own processes. Those of nodes 1, 2, … send theirs and
leave a list of them in the bucket (:class:`PartUploader`); node 0 sends its own, waits for the lists, and commits the
one manifest that names all (:class:`Uploader`).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bafogpt.agent.multinode.heartbeat import CheckpointParts, PartMissingError
from bafogpt.agent.recorder import Outage
from bafogpt.core.errors import BafoError, ConflictError, CorruptError, StorageError, UnreachableError
from bafogpt.storage.checkpoints.manifest import CheckpointFile, flat_files
from bafogpt.storage.checkpoints.retention import BEST_METRIC
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.trainer_io import CHECKPOINT_META, StagedCheckpoint, TrainerFiles, checkpoint_step, read_staged

log = logging.getLogger(__name__)
POLL_S = 0.1
RETRY_S = 2.0
PARTS_POLL_S = 0.5


class Uploader:
    """A thread that sends whole checkpoints, oldest first, and then drops them from local disk.

    A bucket that cannot be reached is tried again and again; ``failing`` says since when and why, and the supervisor
    decides how long that may go on. Nothing leaves local disk before its manifest is committed. ``launch`` is the start
    of the trainers whose parts may still come from other nodes; those of any other are there now or never.
    """

    def __init__(
        self,
        trainer_files: TrainerFiles,
        store: CheckpointStore,
        config: CheckpointConfig,
        attempt: int,
        record: Callable[..., None],
        flush: Callable[[], None],
        parts: CheckpointParts,
    ) -> None:
        self._trainer_files = trainer_files
        self._store = store
        self._config = config
        self._attempt = attempt
        self._record = record
        self._flush = flush
        self._parts = parts
        self.rendezvous_id = ""
        self.took_s: float | None = None
        """What the last save took from its first copy to its manifest, in seconds; None before there was one."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self.outage: Outage | None = None

    def start(self) -> None:
        self._thread.start()

    def idle(self) -> bool:
        """Whether nothing waits on local disk."""
        return not self._trainer_files.pending()

    def reserve_s(self) -> float | None:
        """How long one more save will take, what waits included; None before one has been timed."""
        return None if self.took_s is None else self.took_s * (1 + len(self._trainer_files.pending()))

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
        try:
            while not self._closing.is_set() and self._go_on():
                pass
        except Exception as error:  # a defect: the run ends with it instead of waiting for ever
            message = f"the uploads failed unexpectedly: {type(error).__name__}: {error}"
            self.outage = Outage(float("-inf"), BafoError(message, "report it"))
            log.exception("%s", message)

    def _go_on(self) -> bool:
        """Send the next checkpoint, or wait a little; whether there is any use in going on."""
        folder = self._next()
        if folder is None:
            self._closing.wait(POLL_S)
            return True
        step = checkpoint_step(folder)
        try:
            staged = read_staged(folder)
        except CorruptError as error:  # a disk that lost power: the checkpoint before it is the newest
            self._discard(folder, error)
            return True
        try:
            self._send(staged)
            self.outage = None
        except PartMissingError as error:
            self._discard(folder, error)
        except StorageError as error:
            if self.outage is None:
                self._record("upload_failed", step=step, error=error.message)
            self.outage = Outage(self.outage.since if self.outage else time.monotonic(), error)
            self._closing.wait(RETRY_S)
        except BafoError as error:
            self.outage = Outage(float("-inf"), error)  # no use in trying again
            self._record("upload_failed", step=step, error=error.message)
            return False
        return True

    def _next(self) -> Path | None:
        """The checkpoint folder to send now."""
        return next(iter(self._trainer_files.pending()), None)

    def _discard(self, folder: Path, error: BafoError) -> None:
        self._record("checkpoint_discarded", step=checkpoint_step(folder), error=error.message)
        self._trainer_files.drop(folder)

    def _send(self, staged: StagedCheckpoint) -> None:
        """One checkpoint: files, verification, manifest; then what is too old goes, here and there."""
        self._flush()  # the metrics of its steps: once it is committed nobody does these steps again
        start = time.monotonic()
        upload_id = f"a{self._attempt:04d}-{uuid.uuid4().hex[:8]}"
        try:
            sent = self._store.upload(
                staged.folder,
                step=staged.step,
                samples=staged.samples,
                upload_id=upload_id,
                metadata={"attempt": self._attempt, BEST_METRIC: staged.metadata.get(BEST_METRIC)},
                others=lambda: self._others(staged),
            )
        except ConflictError as error:
            # another attempt committed this step already; that one is complete, so this copy is of no use
            log.warning("%s", error.message)
            self._trainer_files.drop(staged.folder)
            return
        seconds = time.monotonic() - start
        self.took_s = seconds + float(staged.metadata.get("save_s", 0.0))
        self._record(
            "checkpoint_committed",
            step=staged.step,
            samples=staged.samples,
            bytes=sum(each.bytes for each in sent.files),
            seconds=round(seconds, 3),
        )
        self._trainer_files.drop(staged.folder)
        if "rendezvous_id" in staged.metadata:
            self._parts.clear(str(staged.metadata["rendezvous_id"]), staged.step)
        config = self._config
        removed = self._store.retain(config.keep_last, config.keep_every, BEST_METRIC if config.keep_best else None)
        if removed:
            self._record("checkpoints_removed", steps=removed)

    def _others(self, staged: StagedCheckpoint) -> tuple[CheckpointFile, ...]:
        """The files that the other nodes have sent of a checkpoint; waits for them while they may come."""
        nodes = int(staged.metadata.get("nodes", 1))
        if nodes == 1:
            return ()
        launch = str(staged.metadata["rendezvous_id"])
        while True:
            may_come = launch == self.rendezvous_id  # asked before looking, so that the last word has been said
            found = self._parts.get(launch, staged.step, nodes)
            if found is not None:
                return found
            if not may_come:
                raise PartMissingError(f"step {staged.step}: a node has lost its part of it", "")
            if self._closing.wait(PARTS_POLL_S):
                raise UnreachableError(f"step {staged.step}: other nodes have not sent their parts", "launch again")


class PartUploader(Uploader):
    """On nodes 1, 2, …: sends this node's files of each checkpoint, and drops them when node 0 has ``committed`` it."""

    def __init__(self, *, node: int, committed: Callable[[], int], **rest: Any) -> None:
        super().__init__(**rest)
        self._node = node
        self._committed = committed
        self._sent: set[Path] = set()
        self._dropping = threading.Lock()
        """What is sent and what is on the disk change together: a folder that is just going is not one to be sent."""

    def settled(self) -> bool:
        """Whether all that is on local disk is in the bucket as well."""
        return self._next() is None

    def forget(self) -> None:
        """Drop what has been sent, committed or not: node 0 has made of it what it could."""
        with self._dropping:
            for folder in self._trainer_files.pending():
                self._trainer_files.drop(folder)
            self._sent.clear()

    def _next(self) -> Path | None:
        with self._dropping:
            return next((folder for folder in self._trainer_files.pending() if folder not in self._sent), None)

    def _send(self, staged: StagedCheckpoint) -> None:
        own = [path for path in flat_files(staged.folder) if path.name != CHECKPOINT_META]  # node 0 sends that one
        upload_id = f"a{self._attempt:04d}-n{self._node}-{uuid.uuid4().hex[:8]}"
        sent = self._store.send(own, step=staged.step, upload_id=upload_id)
        self._parts.put(str(staged.metadata.get("rendezvous_id", "none")), staged.step, self._node, sent)
        with self._dropping:
            self._sent.add(staged.folder)
        self._record("part_sent", step=staged.step, bytes=sum(each.bytes for each in sent))

    def tidy(self) -> None:
        """Drop what node 0 has committed. Called by the supervisor now and then."""
        committed = self._committed()
        with self._dropping:
            for folder in [each for each in self._sent if checkpoint_step(each) <= committed]:
                self._sent.discard(folder)
                if folder.exists():
                    self._trainer_files.drop(folder)
