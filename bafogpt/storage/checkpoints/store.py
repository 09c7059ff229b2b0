"""The checkpoints of a run in its bucket: upload, find, fetch, retire. The manifest is written last and deleted first.

::

    step-00000040.json                      the manifest; objects that no manifest names do not count
    step-00000040/<upload>/<file>           one prefix per upload: a process that resumes late overwrites nothing

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
from bafogpt.storage.bucket import Bucket, ProgressCallback, no_progress
from bafogpt.storage.checkpoints import retention
from bafogpt.storage.checkpoints.manifest import HINT, Checkpoint, CheckpointFile, flat_files, matches
from bafogpt.storage.checkpoints.upload import FILES_AT_ONCE, FolderUpload, ObjectsByPath, is_intact, verify
from bafogpt.storage.errors import retry_on_corruption
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer.download import JOURNAL, PARTIAL

__all__ = ["Checkpoint", "CheckpointFile", "CheckpointStore"]

log = logging.getLogger(__name__)
MANIFESTS_AT_ONCE = 8
DOWNLOADS_AT_ONCE = 4  # files, each in two ranges at a time
_MANIFEST = re.compile(r"step-(\d{8,})\.json")


class CheckpointStore:
    """The checkpoints of one run; ``bucket`` is the folder ``runs/<run>/checkpoints``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._cache: dict[tuple[str, str], Checkpoint] = {}

    def upload(
        self,
        folder: Path,
        *,
        step: int,
        samples: int,
        upload_id: str,
        metadata: Mapping[str, Any],
        progress: ProgressCallback = no_progress,
        others: Callable[[], Sequence[CheckpointFile]] = tuple,
    ) -> Checkpoint:
        """Send the files of ``folder`` (flat, complete) in parallel, verified, then write the manifest.

        ``upload_id`` must be new for each attempt; files that an earlier attempt has sent are not sent again. A
        checkpoint of this step with the same content is returned; with other content it raises
        :class:`ConflictError`, unless it is damaged: then it is replaced. Raises :class:`CorruptError` when an object
        is not what was sent. ``others`` is called once the files are in the bucket, for the files that other machines
        have sent by :meth:`send`.
        """
        objects = self._list()
        complete = self._complete(objects)
        prefix = f"step-{step:08d}"
        upload = FolderUpload(self._bucket, flat_files(folder), prefix, upload_id, complete, objects)
        for other in complete:
            if other.step == step and self._keep_existing(other, samples, upload.digests(every=True), folder, objects):
                return other
        sent = upload.send(progress)
        sent += self._require_intact(tuple(others()))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return self._commit(Checkpoint(step, samples, created, upload_id, sent, dict(metadata)))

    def send(self, paths: Sequence[Path], *, step: int, upload_id: str) -> tuple[CheckpointFile, ...]:
        """Send one machine's files of a checkpoint, verified. Another machine writes the manifest."""
        objects = self._list()
        prefix = f"step-{step:08d}"
        return FolderUpload(self._bucket, paths, prefix, upload_id, self._complete(objects), objects).send()

    def complete(self) -> list[Checkpoint]:
        """Every checkpoint with a readable manifest, newest last."""
        return self._complete(self._list())

    def problems(self, checkpoint: Checkpoint) -> list[str]:
        """Read every byte of a checkpoint; a message for each damaged file."""
        right = in_parallel(lambda file, _: verify(self._bucket, file), checkpoint.files, FILES_AT_ONCE)
        damaged = [file.object for file, is_right in zip(checkpoint.files, right, strict=True) if not is_right]
        return [f"{self._bucket.url}/{name} is not what the manifest of {checkpoint.name} says" for name in damaged]

    def fetch(self, checkpoint: Checkpoint, into: Path, *, progress: ProgressCallback = no_progress) -> Path:
        """The checkpoint as a folder of local files, ``into/step-…``, all verified.

        Local files with the right content are not fetched again, and an interrupted download resumes. The
        folder appears whole or not at all. Raises :class:`CorruptError` or :class:`NotFoundError` for a damaged
        checkpoint.
        """
        folder, partial = into / checkpoint.name, into / f".{checkpoint.name}.partial"
        if _is_exactly(folder, checkpoint):
            return folder
        partial.mkdir(parents=True, exist_ok=True)
        _remove_useless(partial, checkpoint)
        missing = [file for file in checkpoint.files if not (partial / file.name).exists()]
        try:
            self._fetch_files(missing, folder, partial, progress)
        except (CorruptError, NotFoundError, DiskFullError):  # useless, and the disk space is needed
            shutil.rmtree(partial)
            raise
        files.sync_folder(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        files.sync_folder(into)
        return folder

    def fetch_newest(self, into: Path, *, progress: ProgressCallback = no_progress) -> tuple[Checkpoint, Path] | None:
        """The newest undamaged checkpoint, fetched; ``None`` when there is none.

        A damaged one is logged as a warning, and the one before is tried. Other errors, such as an unreachable
        server, are raised rather than answered with an old checkpoint.
        """
        for checkpoint in reversed(self.complete()):
            try:
                return checkpoint, self.fetch(checkpoint, into, progress=progress)
            except (CorruptError, NotFoundError) as error:
                log.warning("checkpoint %s is damaged, trying the one before: %s", checkpoint.name, error.message)
        return None

    def retain(self, last: int, every: int | None = None, best: str | None = None) -> list[int]:
        """Keep the newest ``last``, the multiples of ``every``, and the lowest of the metric ``best``; remove the rest.

        Removes manifests first, then the objects that no remaining manifest names, and what unfinished uploads left of
        steps up to the newest checkpoint. Returns the removed steps.
        """
        if last < 1:
            raise ValueError("the newest checkpoint is always kept")
        complete = self.complete()
        if not complete:
            return []
        keep = retention.steps_to_keep(complete, last, every, best)
        retired = [each for each in complete if each.step not in keep]
        retention.remove(self._bucket, retired, [each for each in complete if each.step in keep])
        return [each.step for each in retired]

    def _list(self) -> ObjectsByPath:
        return {info.path: info for info in self._bucket.list()}

    def _complete(self, objects: ObjectsByPath) -> list[Checkpoint]:
        """Manifests are immutable, so one is read again only when its ETag has changed."""
        steps = {int(match.group(1)): name for name in objects if (match := _MANIFEST.fullmatch(name))}
        keys = [(steps[step], objects[steps[step]].etag) for step in sorted(steps)]
        unread = [key for key in keys if not key[1] or key not in self._cache]
        found = in_parallel(lambda key, _: self._find(key[0]), unread, MANIFESTS_AT_ONCE)
        fresh = {key: each for key, each in zip(unread, found, strict=True) if each is not None}
        self._cache = {key: each for key in keys if (each := fresh.get(key) or self._cache.get(key))}
        return list(self._cache.values())

    def _find(self, name: str) -> Checkpoint | None:
        try:
            return self._read(name)
        except NotFoundError:  # removed since it was listed
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
        """Write the manifest unless one exists, then read it: some servers overwrite it anyway. A damaged
        manifest is replaced once."""
        name = f"{checkpoint.name}.json"
        for _ in range(2):
            try:
                self._bucket.put(name, checkpoint.to_json(), create_only=True)
            except ConflictError:
                log.info("%s exists already", name)
            try:
                other = self._read(name)
            except CorruptError as error:
                log.warning("%s; it is replaced", error.message)
                self._bucket.delete(name)
                continue
            if not checkpoint.holds_the_same(other):
                raise self._conflict(name)
            return other
        raise CorruptError(f"{self._bucket.url}/{name}: the data was corrupted in transit", "repeat the command")

    def _keep_existing(
        self, other: Checkpoint, samples: int, digests: Mapping[str, str], folder: Path, objects: ObjectsByPath
    ) -> bool:
        """Whether to keep an existing checkpoint of this step: it has the same content, and damaged files are sent
        again. One with other content is removed if it is damaged; otherwise it raises :class:`ConflictError`."""
        damaged = [file for file in other.files if not is_intact(self._bucket, file, objects)]
        if (other.samples, {file.name: file.digest for file in other.files}) == (samples, digests):
            for file in damaged:
                transfer.send(folder / file.name, self._bucket, file.object)
            return True
        if not damaged:
            raise self._conflict(f"{other.name}.json")
        log.warning("%s/%s.json is damaged (%s) and is replaced", self._bucket.url, other.name, damaged[0].object)
        self._bucket.delete(f"{other.name}.json")
        return False

    def _require_intact(self, sent: tuple[CheckpointFile, ...]) -> tuple[CheckpointFile, ...]:
        """The files that other machines have sent. Raises :class:`CorruptError` for one that is not in the bucket."""
        objects = self._list() if sent else {}
        for file in sent:
            if not is_intact(self._bucket, file, objects):
                raise CorruptError(f"{self._bucket.url}/{file.object} is not what was sent", "launch with --resume")
        return sent

    def _conflict(self, name: str) -> ConflictError:
        where = f"{self._bucket.url}/{name}"
        return ConflictError(f"{where} exists with other content", f"bafogpt storage ls {self._bucket.url}")

    def _fetch_files(
        self, missing: list[CheckpointFile], folder: Path, partial: Path, progress: ProgressCallback
    ) -> None:
        fetched = sum(path.stat().st_blocks * 512 for path in partial.glob(f"*{PARTIAL}"))
        needed = sum(file.bytes for file in missing) - fetched
        files.require_space(partial, needed, f"checkpoint {folder.name}")

        def one(file: CheckpointFile, check: Check) -> None:
            def moved(count: int) -> None:
                check()
                progress(count)

            target = partial / file.name
            if matches(folder / file.name, file):
                os.link(folder / file.name, target)
            else:
                transfer.fetch(self._bucket, file.object, target, size=file.bytes, digest=file.digest, progress=moved)

        in_parallel(one, sorted(missing, key=lambda file: file.bytes, reverse=True), DOWNLOADS_AT_ONCE)


def _remove_useless(partial: Path, checkpoint: Checkpoint) -> None:
    """Remove all but the right files and the unfinished downloads of the checkpoint."""
    wanted = {file.name: file for file in checkpoint.files}
    downloads = {f"{name}{ending}" for name in wanted for ending in (PARTIAL, JOURNAL)}
    for path in partial.iterdir():
        if path.name not in downloads and (path.name not in wanted or not matches(path, wanted[path.name])):
            path.unlink()


def _is_exactly(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether the folder has exactly the checkpoint's files, all intact."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {file.name for file in checkpoint.files}:
        return False
    return all(matches(folder / file.name, file) for file in checkpoint.files)
