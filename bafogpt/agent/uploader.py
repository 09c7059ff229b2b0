"""Uploads saved checkpoints from local disk to the bucket while training goes on.

Each node saves the files of its own processes. Nodes 1, 2, … upload theirs and leave a list of them in the bucket
(:class:`PartUploader`); node 0 uploads its own, waits for the lists, and commits one manifest for all
(:class:`Uploader`).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from bafogpt.agent.attempt import Attempt
from bafogpt.agent.multinode.checkpoint_parts import CheckpointParts, PartMissingError
from bafogpt.agent.recorder import Outage
from bafogpt.core.errors import BafoError, ConflictError, CorruptError, StorageError, UnreachableError
from bafogpt.storage.checkpoints.manifest import CheckpointFile, flat_files
from bafogpt.storage.checkpoints.retention import BEST_METRIC
from bafogpt.train.trainer_io import CHECKPOINT_META, StagedCheckpoint, checkpoint_step, read_staged

log = logging.getLogger(__name__)
POLL_S = 0.1
RETRY_S = 2.0
PARTS_POLL_S = 0.5


class Uploader:
    """A thread that uploads complete checkpoints, oldest first, and then removes them from local disk.

    While a bucket cannot be reached the upload is tried again; ``outage`` holds since when and why, and the supervisor
    decides how long that may last. A checkpoint stays on local disk until its manifest is committed; ``on_committed``
    is called with its step then. ``rendezvous_id`` is the start of the trainers whose parts other nodes may still
    upload; those of an earlier start are in the bucket, or lost.
    """

    def __init__(self, attempt: Attempt, on_committed: Callable[[int], None] = lambda _: None) -> None:
        self._attempt = attempt
        self._trainer_files = attempt.trainer_files
        self._store = attempt.checkpoints
        self._event = attempt.recorder.event
        self._on_committed = on_committed
        self._parts = CheckpointParts(attempt.run)
        self.rendezvous_id = ""
        self.took_s: float | None = None
        """Seconds from the first copy of the last save to its manifest; None before the first save."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)
        self.outage: Outage | None = None

    def start(self) -> None:
        self._thread.start()

    def idle(self) -> bool:
        """Whether no checkpoint waits on local disk."""
        return not self._trainer_files.pending()

    def reserve_s(self) -> float | None:
        """How long one more save will take, with those that wait; None before one was timed."""
        return None if self.took_s is None else self.took_s * (1 + len(self._trainer_files.pending()))

    def drain(self, timeout_s: float) -> bool:
        """Wait until every saved checkpoint is committed (True) or the time is over (False), then stop."""
        deadline = time.monotonic() + timeout_s
        while not self.idle() and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(POLL_S)
        drained = self.idle()
        self._closing.set()
        self._thread.join(timeout=30)
        return drained

    def _run(self) -> None:
        try:
            while not self._closing.is_set() and self._upload_next():
                pass
        except Exception as error:  # a defect: it ends the run, which would wait forever for this thread
            message = f"the uploader failed unexpectedly: {type(error).__name__}: {error}"
            self.outage = Outage(float("-inf"), BafoError(message, "report it"))
            log.exception("%s", message)

    def _upload_next(self) -> bool:
        """Upload the next checkpoint, or wait a little; False where no further upload can succeed."""
        folder = self._next()
        if folder is None:
            self._closing.wait(POLL_S)
            return True
        step = checkpoint_step(folder)
        try:
            staged = read_staged(folder)
        except CorruptError as error:  # a power cut damaged it; the checkpoint before it is the newest
            self._discard(folder, error)
            return True
        try:
            self._upload(staged)
            self.outage = None
        except PartMissingError as error:
            self._discard(folder, error)
        except StorageError as error:
            if self.outage is None:
                self._event("upload_failed", step=step, error=error.message)
            self.outage = Outage(self.outage.since if self.outage else time.monotonic(), error)
            self._closing.wait(RETRY_S)
        except BafoError as error:
            self.outage = Outage(float("-inf"), error)
            self._event("upload_failed", step=step, error=error.message)
            return False
        return True

    def _next(self) -> Path | None:
        """The checkpoint folder to upload now."""
        return next(iter(self._trainer_files.pending()), None)

    def _discard(self, folder: Path, error: BafoError) -> None:
        self._event("checkpoint_discarded", step=checkpoint_step(folder), error=error.message)
        self._trainer_files.drop(folder)

    def _upload(self, staged: StagedCheckpoint) -> None:
        """Upload one checkpoint: files, verification, manifest; then remove old ones, here and in the bucket."""
        self._attempt.recorder.flush()  # its metrics first: the steps of a committed checkpoint are not done again
        start = time.monotonic()
        try:
            sent = self._store.upload(
                staged.folder,
                step=staged.step,
                samples=staged.samples,
                upload_id=self._upload_id(),
                metadata={"attempt": self._attempt.number, BEST_METRIC: staged.metadata.get(BEST_METRIC)},
                others=lambda: self._others(staged),
            )
        except ConflictError as error:  # another attempt has committed this step
            log.warning("%s", error.message)
            self._trainer_files.drop(staged.folder)
            return
        seconds = time.monotonic() - start
        self.took_s = seconds + float(staged.metadata.get("save_s", 0.0))
        size = sum(each.bytes for each in sent.files)
        figures = {"samples": staged.samples, "bytes": size, "seconds": round(seconds, 3)}
        self._event("checkpoint_committed", step=staged.step, **figures)
        self._on_committed(staged.step)
        self._trainer_files.drop(staged.folder)
        if staged.rendezvous is not None:
            self._parts.clear(staged.rendezvous.id, staged.step)
        config = self._attempt.job.train.checkpoint
        removed = self._store.retain(config.keep_last, config.keep_every, BEST_METRIC if config.keep_best else None)
        if removed:
            self._event("checkpoints_removed", steps=removed)

    def _upload_id(self, node: str = "") -> str:
        return f"a{self._attempt.number:04d}{node}-{uuid.uuid4().hex[:8]}"

    def _others(self, staged: StagedCheckpoint) -> tuple[CheckpointFile, ...]:
        """The files that the other nodes have uploaded of a checkpoint; waits for them while they may come."""
        rendezvous = staged.rendezvous
        if rendezvous is None:
            return ()
        while True:
            may_come = rendezvous.id == self.rendezvous_id  # before the lists are read: a list may come in between
            found = self._parts.get(rendezvous.id, staged.step, rendezvous.nodes)
            if found is not None:
                return found
            if not may_come:
                raise PartMissingError(f"step {staged.step}: a node has lost its part of the checkpoint", "")
            if self._closing.wait(PARTS_POLL_S):
                raise UnreachableError(f"step {staged.step}: other nodes have not sent their parts", "launch again")


class PartUploader(Uploader):
    """On nodes 1, 2, …: uploads this node's files of each checkpoint, and removes them once node 0 has committed it."""

    def __init__(self, attempt: Attempt, node: int) -> None:
        super().__init__(attempt)
        self._node = node
        self._sent: set[Path] = set()
        self._dropping = threading.Lock()
        """Guards ``_sent`` and the disk together: a folder that is being removed must not be uploaded again."""

    def all_sent(self) -> bool:
        """Whether everything on local disk is in the bucket as well."""
        return self._next() is None

    def drop_all(self) -> None:
        """Remove everything, committed or not: node 0 has committed what it could."""
        with self._dropping:
            for folder in self._trainer_files.pending():
                self._trainer_files.drop(folder)
            self._sent.clear()

    def drop_committed(self, step: int) -> None:
        """Remove what was sent, up to the step that node 0 has committed."""
        with self._dropping:
            for folder in [each for each in self._sent if checkpoint_step(each) <= step]:
                self._sent.discard(folder)
                if folder.exists():
                    self._trainer_files.drop(folder)

    def _next(self) -> Path | None:
        with self._dropping:
            return next((folder for folder in self._trainer_files.pending() if folder not in self._sent), None)

    def _upload(self, staged: StagedCheckpoint) -> None:
        own = [path for path in flat_files(staged.folder) if path.name != CHECKPOINT_META]  # node 0 sends that one
        sent = self._store.send(own, step=staged.step, upload_id=self._upload_id(f"-n{self._node}"))
        assert staged.rendezvous is not None, "a node beside node 0 trains with others"
        self._parts.put(staged.rendezvous.id, staged.step, self._node, sent)
        with self._dropping:
            self._sent.add(staged.folder)
        self._event("part_sent", step=staged.step, bytes=sum(each.bytes for each in sent))
