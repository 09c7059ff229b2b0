"""Upload the files of one checkpoint: those that the bucket has already are named again, the others are sent."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback, no_progress
from bafogpt.storage.checkpoints.manifest import Checkpoint, CheckpointFile
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer import multipart

FILES_AT_ONCE = 4
ObjectsByPath = Mapping[str, ObjectInfo]
"""Every object below ``checkpoints/`` by its path, as one request listed them."""


def is_intact(bucket: Bucket, file: CheckpointFile, objects: ObjectsByPath) -> bool:
    """Whether the bucket holds the file's content: unchanged since it was verified, or verified now."""
    info = objects.get(file.object)
    if info is None or info.bytes != file.bytes:
        return False
    return (file.etag != "" and info.etag == file.etag) or verify(bucket, file)


def verify(bucket: Bucket, file: CheckpointFile) -> bool:
    """Read the file's object; whether every byte is right."""
    try:
        if bucket.info(file.object).bytes != file.bytes:
            return False
        return digest.of_chunks(bucket.chunks(file.object)) == file.digest
    except NotFoundError:
        return False


class FolderUpload:
    """One attempt to send the files ``paths`` below ``prefix/upload_id/``.

    Files of the checkpoints ``complete`` may be named again. Objects and parts that an earlier attempt at the same step
    has sent are used, too.
    """

    def __init__(
        self,
        bucket: Bucket,
        paths: Sequence[Path],
        prefix: str,
        upload_id: str,
        complete: Iterable[Checkpoint],
        objects: ObjectsByPath,
    ) -> None:
        self._bucket = bucket
        self._paths = paths
        self._prefix = prefix
        self._upload_id = upload_id
        self._objects = objects
        named = [file for checkpoint in complete for file in checkpoint.files]
        self._known = {(file.digest, file.bytes): file for file in named}
        self._sizes = {file.bytes for file in named}
        self._named = {file.object for file in named}
        self._digests: dict[str, str] = {}

    def digests(self, *, every: bool = False) -> dict[str, str]:
        """Digests by name of the files that may be in the bucket already, or of ``every`` file.

        A file of a new size is new, and is hashed while it is sent.
        """
        wanted = [each for each in self._paths if every or each.stat().st_size in self._sizes]
        wanted = [each for each in wanted if each.name not in self._digests]
        found = in_parallel(lambda path, _: digest.of_file(path), wanted, FILES_AT_ONCE)
        self._digests |= {path.name: each for path, each in zip(wanted, found, strict=True)}
        return self._digests

    def send(self, progress: ProgressCallback = no_progress) -> tuple[CheckpointFile, ...]:
        """Bring every file into the bucket, verified; large files first."""
        self.digests()

        def one(path: Path, check: Check) -> CheckpointFile:
            def moved(count: int) -> None:
                check()
                progress(count)

            return self._send_file(path, moved)

        order = sorted(self._paths, key=lambda path: path.stat().st_size, reverse=True)
        return tuple(sorted(in_parallel(one, order, FILES_AT_ONCE), key=lambda file: file.name))

    def _send_file(self, path: Path, moved: ProgressCallback) -> CheckpointFile:
        content, size = self._digests.get(path.name), path.stat().st_size
        earlier = self._known.get((content, size)) if content else None
        if earlier is not None and is_intact(self._bucket, earlier, self._objects):
            moved(size)
            return replace(earlier, name=path.name, etag=self._objects[earlier.object].etag)
        found = self._sent_earlier(path, size)
        if found is not None:
            moved(size)
            return CheckpointFile(path.name, size, content or digest.of_file(path), found.path, found.etag)
        unfinished = self._unfinished if size > transfer.PART_BYTES else []
        resumable = (upload.path for upload in unfinished if self._is_attempt(upload.path, path.name))
        target = next(resumable, f"{self._prefix}/{self._upload_id}/{path.name}")
        sent = transfer.send(path, self._bucket, target, progress=moved, unfinished=unfinished)
        if content not in (None, sent.digest):
            raise CorruptError(f"{path} changed while it was sent", "repeat the command")
        return CheckpointFile(path.name, sent.bytes, sent.digest, target, sent.etag)

    def _sent_earlier(self, path: Path, size: int) -> ObjectInfo | None:
        """The object that an earlier attempt sent and no manifest names, found by the server's hash of it."""
        if size <= transfer.PART_BYTES:  # sending it takes less time
            return None
        found = [
            info
            for info in self._objects.values()
            if info.bytes == size and info.path not in self._named and self._is_attempt(info.path, path.name)
        ]
        etag = transfer.etag_of(path) if found else ""
        return next((info for info in found if info.etag == etag), None)

    @functools.cached_property
    def _unfinished(self) -> list[multipart.MultipartUpload]:
        """Uploads that earlier attempts have begun.

        Resuming one is safe: the first to complete it ends it for every other process, and the server completes only
        parts with the hashes that the request names.
        """
        return multipart.resumable(self._bucket, self._prefix)

    def _is_attempt(self, path: str, name: str) -> bool:
        parts = PurePosixPath(path).parts
        return len(parts) == 3 and (parts[0], parts[2]) == (self._prefix, name)
