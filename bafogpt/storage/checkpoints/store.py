"""Checkpoints in a bucket: uploaded, found, fetched, retired. The manifest is written last and deleted first.

::

    step-00000040.json                      the manifest; what no manifest names does not exist
    step-00000040/<upload>/<file>           one prefix per upload: a writer that wakes up late touches nothing

A manifest names its objects, so a file that has not changed since an earlier checkpoint is named again and not sent
again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bafogpt.core import files
from bafogpt.core.errors import ConflictError, CorruptError, DiskFullError, NotFoundError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket, ProgressCallback
from bafogpt.storage.checkpoints import retention
from bafogpt.storage.checkpoints.manifest import HINT, Checkpoint, CheckpointFile, flat_files, matches
from bafogpt.storage.checkpoints.upload import FILES_AT_ONCE, FolderUpload, ObjectsByPath, is_sound, is_whole
from bafogpt.storage.errors import retry_on_corruption
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer.download import JOURNAL, PARTIAL

__all__ = ["Checkpoint", "CheckpointFile", "CheckpointStore"]

log = logging.getLogger(__name__)
MANIFESTS_AT_ONCE = 8
FETCHED_AT_ONCE = 4  # files, each in two ranges at a time
_MANIFEST = re.compile(r"step-(\d{8,})\.json")


class CheckpointStore:
    """The checkpoints of one run; ``bucket`` is the folder ``runs/<run>/checkpoints``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._read_before: dict[tuple[str, str], Checkpoint] = {}

    def upload(
        self,
        folder: Path,
        *,
        step: int,
        samples: int,
        upload_id: str,
        metadata: Mapping[str, Any],
        progress: ProgressCallback | None = None,
        others: Callable[[], Sequence[CheckpointFile]] = tuple,
    ) -> Checkpoint:
        """Send the files of ``folder`` (flat, complete) side by side, verified, then commit the manifest.

        ``upload_id`` must be new for each try; what an earlier try of this step has sent is not sent again. A step
        that is complete already with the same content is returned; with other content it raises
        :class:`ConflictError`, unless it is damaged: then it is replaced. Raises :class:`CorruptError` when what
        arrived is not what was sent. ``others`` is asked, once these files are in the bucket, for those that other
        machines have sent by :meth:`send`.
        """
        listing = self._listing()
        complete = self._complete(listing)
        prefix = f"step-{step:08d}"
        upload = FolderUpload(self._bucket, flat_files(folder), prefix, upload_id, complete, listing)
        for other in complete:
            if other.step == step and self._settle(other, samples, upload.digests(every=True), folder, listing):
                return other
        sent = upload.send(progress)
        sent += self._still_there(tuple(others()))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return self._commit(Checkpoint(step, samples, created, upload_id, sent, dict(metadata)))

    def send(self, paths: Sequence[Path], *, step: int, upload_id: str) -> tuple[CheckpointFile, ...]:
        """Send some files of a checkpoint, verified. They are part of it once another machine's manifest names them."""
        listing = self._listing()
        prefix = f"step-{step:08d}"
        return FolderUpload(self._bucket, paths, prefix, upload_id, self._complete(listing), listing).send(None)

    def complete(self) -> list[Checkpoint]:
        """Every checkpoint with a readable manifest, newest last."""
        return self._complete(self._listing())

    def problems(self, checkpoint: Checkpoint) -> list[str]:
        """The files of a checkpoint that the bucket does not hold as its manifest says; every byte is read."""
        whole = in_parallel(lambda file, _: is_whole(self._bucket, file), checkpoint.files, FILES_AT_ONCE)
        unsound = [file.object for file, is_right in zip(checkpoint.files, whole, strict=True) if not is_right]
        return [f"{self._bucket.url}/{name} is not what the manifest of {checkpoint.name} says" for name in unsound]

    def fetch(self, checkpoint: Checkpoint, into: Path, *, progress: ProgressCallback | None = None) -> Path:
        """The checkpoint as a folder of local files, ``into/step-…``, all of them verified.

        Files there already whose content is right are not fetched, and a fetch that was cut off goes on. The folder
        appears whole or not at all. Raises :class:`CorruptError` or :class:`NotFoundError` when the bucket does not
        hold what the manifest says.
        """
        folder, partial = into / checkpoint.name, into / f".{checkpoint.name}.partial"
        if _is_exactly(folder, checkpoint):
            return folder
        partial.mkdir(parents=True, exist_ok=True)
        _clear(partial, checkpoint)
        missing = [file for file in checkpoint.files if not (partial / file.name).exists()]
        try:
            self._fetch_files(missing, folder, partial, progress)
        except (CorruptError, NotFoundError, DiskFullError):  # of no use, and its room is needed
            shutil.rmtree(partial)
            raise
        files.sync_folder(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        files.sync_folder(into)
        return folder

    def fetch_newest(self, into: Path, *, progress: ProgressCallback | None = None) -> tuple[Checkpoint, Path] | None:
        """The newest checkpoint that is whole, fetched; ``None`` when there is none.

        One that turns out to be damaged is reported as a warning, and the one before is tried. Other failures, such
        as an unreachable server, are raised: an old checkpoint is no answer to those.
        """
        for checkpoint in reversed(self.complete()):
            try:
                return checkpoint, self.fetch(checkpoint, into, progress=progress)
            except (CorruptError, NotFoundError) as error:
                log.warning("checkpoint %s is damaged, trying the one before: %s", checkpoint.name, error.message)
        return None

    def retain(self, last: int, every: int | None = None, best: str | None = None) -> list[int]:
        """Retire all but the newest ``last`` checkpoints, those whose step is a multiple of ``every``, and the one
        whose metadata has the lowest ``best`` (the name of a number in it: ``validation_loss``).

        Manifests go first, then the objects that none of the remaining names; leftovers of uploads that never became
        complete too, parts of objects included, if they are of no later step than the newest checkpoint. Returns the
        retired steps.
        """
        if last < 1:
            raise ValueError("the newest checkpoint is always kept")
        complete = self.complete()
        if not complete:
            return []
        stay = retention.kept(complete, last, every, best)
        retired = [each for each in complete if each.step not in stay]
        retention.clear(self._bucket, retired, [each for each in complete if each.step in stay])
        return [each.step for each in retired]

    def _listing(self) -> ObjectsByPath:
        return {info.path: info for info in self._bucket.list()}

    def _complete(self, listing: ObjectsByPath) -> list[Checkpoint]:
        """Manifests are never written twice, so one that was read stays read while the server calls it the same."""
        steps = {int(match.group(1)): name for name in listing if (match := _MANIFEST.fullmatch(name))}
        keys = [(steps[step], listing[steps[step]].etag) for step in sorted(steps)]
        unread = [key for key in keys if not key[1] or key not in self._read_before]
        found = in_parallel(lambda key, _: self._find(key[0]), unread, MANIFESTS_AT_ONCE)
        fresh = {key: each for key, each in zip(unread, found, strict=True) if each is not None}
        self._read_before = {key: each for key in keys if (each := fresh.get(key) or self._read_before.get(key))}
        return list(self._read_before.values())

    def _find(self, name: str) -> Checkpoint | None:
        try:
            return self._read(name)
        except NotFoundError:  # retired since it was listed
            return None
        except CorruptError as error:
            log.warning("checkpoint manifest skipped: %s", error.message)
            return None

    def _read(self, name: str) -> Checkpoint:
        where = f"{self._bucket.url}/{name}"
        checkpoint = retry_on_corruption(lambda: Checkpoint.from_json(self._bucket.get(name), where))
        if f"{checkpoint.name}.json" != name:
            raise CorruptError(f"{where} is the manifest of step {checkpoint.step}", HINT)
        return checkpoint

    def _commit(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the manifest unless there is one, and read what is there then: some servers overwrite all the same,
        and a damaged manifest, which vouches for nothing, gives way once."""
        name = f"{checkpoint.name}.json"
        for _ in range(2):
            try:
                self._bucket.put(name, checkpoint.to_json(), create_only=True)
            except ConflictError:
                log.info("%s is there already", name)
            try:
                other = self._read(name)
            except CorruptError as error:
                log.warning("%s; it is replaced", error.message)
                self._bucket.delete(name)
                continue
            if not checkpoint.holds_the_same(other):
                raise self._conflict(name)
            return other
        raise CorruptError(f"{self._bucket.url}/{name}: what arrived is not what was sent", "send it again")

    def _settle(
        self, other: Checkpoint, samples: int, digests: Mapping[str, str], folder: Path, listing: ObjectsByPath
    ) -> bool:
        """What to do about a complete checkpoint of this step. True: it stands, being the same as this one (what is
        damaged of it is sent again). False: it was damaged, other than this one, and is gone now. Raises
        :class:`ConflictError` otherwise."""
        damaged = [file for file in other.files if not is_sound(self._bucket, file, listing)]
        if (other.samples, {file.name: file.digest for file in other.files}) == (samples, digests):
            for file in damaged:
                transfer.send(folder / file.name, self._bucket, file.object)
            return True
        if not damaged:
            raise self._conflict(f"{other.name}.json")
        log.warning("%s/%s.json is damaged (%s) and is replaced", self._bucket.url, other.name, damaged[0].object)
        self._bucket.delete(f"{other.name}.json")
        return False

    def _still_there(self, sent: tuple[CheckpointFile, ...]) -> tuple[CheckpointFile, ...]:
        """What other machines have sent, if the bucket still has it. Raises :class:`CorruptError`."""
        listing = self._listing() if sent else {}
        for file in sent:
            if not is_sound(self._bucket, file, listing):
                raise CorruptError(f"{self._bucket.url}/{file.object} is not what was sent", "launch with --resume")
        return sent

    def _conflict(self, name: str) -> ConflictError:
        where = f"{self._bucket.url}/{name}"
        return ConflictError(f"{where} exists with other content", f"bafogpt storage ls {self._bucket.url}")

    def _fetch_files(
        self, missing: list[CheckpointFile], folder: Path, partial: Path, progress: ProgressCallback | None
    ) -> None:
        there = sum(path.stat().st_blocks * 512 for path in partial.glob(f"*{PARTIAL}"))
        needed = sum(file.bytes for file in missing) - there
        files.require_space(partial, needed, f"checkpoint {folder.name}")

        def one(file: CheckpointFile, check: Check) -> None:
            def moved(n: int) -> None:
                check()
                if progress is not None:
                    progress(n)

            target = partial / file.name
            if matches(folder / file.name, file):
                os.link(folder / file.name, target)
            else:
                transfer.fetch(self._bucket, file.object, target, size=file.bytes, digest=file.digest, progress=moved)

        in_parallel(one, sorted(missing, key=lambda file: file.bytes, reverse=True), FETCHED_AT_ONCE)


def _clear(partial: Path, checkpoint: Checkpoint) -> None:
    """Leave in an unfinished folder what can be used: files that are right, and those on their way."""
    wanted = {file.name: file for file in checkpoint.files}
    going = {f"{name}{ending}" for name in wanted for ending in (PARTIAL, JOURNAL)}
    for path in partial.iterdir():
        if path.name not in going and (path.name not in wanted or not matches(path, wanted[path.name])):
            path.unlink()


def _is_exactly(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether the folder holds the checkpoint's files, all right, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {file.name for file in checkpoint.files}:
        return False
    return all(matches(folder / file.name, file) for file in checkpoint.files)
