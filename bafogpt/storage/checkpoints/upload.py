"""The files of one checkpoint on their way into the bucket: what is there already is named, the rest is sent."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.checkpoints.manifest import Checkpoint, CheckpointFile
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer import multipart

FILES_AT_ONCE = 4
ObjectsByPath = Mapping[str, ObjectInfo]
"""Every object below ``checkpoints/`` by its path, as one request told."""


def is_sound(bucket: Bucket, file: CheckpointFile, listing: ObjectsByPath) -> bool:
    """Whether the bucket holds the file's content: untouched since it was verified, or every byte read again."""
    info = listing.get(file.object)
    if info is None or info.bytes != file.bytes:
        return False
    return (file.etag != "" and info.etag == file.etag) or is_whole(bucket, file)


def is_whole(bucket: Bucket, file: CheckpointFile) -> bool:
    """Whether every byte of the file's object is right."""
    try:
        if bucket.info(file.object).bytes != file.bytes:
            return False
        return digest.of_chunks(bucket.chunks(file.object)) == file.digest
    except NotFoundError:
        return False


class FolderUpload:
    """One try at sending the files ``paths`` below ``prefix/upload_id/``.

    ``complete`` are the checkpoints whose files may be named again; content of an earlier try of the same step, whole
    objects and parts of one, is made use of too.
    """

    def __init__(
        self,
        bucket: Bucket,
        paths: Sequence[Path],
        prefix: str,
        upload_id: str,
        complete: Iterable[Checkpoint],
        listing: ObjectsByPath,
    ) -> None:
        self._bucket = bucket
        self._paths = paths
        self._prefix = prefix
        self._upload_id = upload_id
        self._listing = listing
        named = [file for checkpoint in complete for file in checkpoint.files]
        self._known = {(file.digest, file.bytes): file for file in named}
        self._sizes = {file.bytes for file in named}
        self._vouched = {file.object for file in named}
        self._digests: dict[str, str] = {}

    def digests(self, *, every: bool = False) -> dict[str, str]:
        """Digests by name of the files that may be in the bucket already (or of ``every`` one), taken side by side.

        A file whose size is new is new, and is hashed while it is sent.
        """
        wanted = [each for each in self._paths if every or each.stat().st_size in self._sizes]
        wanted = [each for each in wanted if each.name not in self._digests]
        taken = in_parallel(lambda path, _: digest.of_file(path), wanted, FILES_AT_ONCE)
        self._digests |= {path.name: each for path, each in zip(wanted, taken, strict=True)}
        return self._digests

    def send(self, progress: ProgressCallback | None) -> tuple[CheckpointFile, ...]:
        """Bring every file into the bucket, verified; big ones first."""
        self.digests()

        def bring(path: Path, check: Check) -> CheckpointFile:
            def moved(n: int) -> None:
                check()
                if progress is not None:
                    progress(n)

            return self._bring(path, moved)

        order = sorted(self._paths, key=lambda path: path.stat().st_size, reverse=True)
        brought = in_parallel(bring, order, FILES_AT_ONCE)
        return tuple(sorted(brought, key=lambda file: file.name))

    def _bring(self, path: Path, moved: ProgressCallback) -> CheckpointFile:
        content, size = self._digests.get(path.name), path.stat().st_size
        earlier = self._known.get((content, size)) if content else None
        if earlier is not None and is_sound(self._bucket, earlier, self._listing):
            moved(size)
            return replace(earlier, name=path.name, etag=self._listing[earlier.object].etag)
        left = self._left_whole(path, size)
        if left is not None:
            moved(size)
            return CheckpointFile(path.name, size, content or digest.of_file(path), left.path, left.etag)
        unfinished = self._unfinished if size > transfer.PART_BYTES else []
        left_in_part = (upload.path for upload in unfinished if self._is_of_a_try(upload.path, path.name))
        target = next(left_in_part, f"{self._prefix}/{self._upload_id}/{path.name}")
        sent = transfer.send(path, self._bucket, target, progress=moved, unfinished=unfinished)
        if content not in (None, sent.digest):
            raise CorruptError(f"{path} changed while it was sent", "send it again")
        return CheckpointFile(path.name, sent.bytes, sent.digest, target, sent.etag)

    def _left_whole(self, path: Path, size: int) -> ObjectInfo | None:
        """The object that an earlier try sent and no manifest names; known by the server's hash of it."""
        if size <= transfer.PART_BYTES:  # quicker sent than looked for
            return None
        found = [
            info
            for info in self._listing.values()
            if info.bytes == size and info.path not in self._vouched and self._is_of_a_try(info.path, path.name)
        ]
        etag = transfer.etag_of(path) if found else ""
        return next((info for info in found if info.etag == etag), None)

    @functools.cached_property
    def _unfinished(self) -> list[multipart.MultipartUpload]:
        """What earlier tries have begun to send.

        Going on with it is safe: whoever completes an upload first ends it for everybody else, and the server
        completes only what has the hashes it is asked for.
        """
        return multipart.to_resume(self._bucket, self._prefix)

    def _is_of_a_try(self, path: str, name: str) -> bool:
        parts = PurePosixPath(path).parts
        return len(parts) == 3 and (parts[0], parts[2]) == (self._prefix, name)
