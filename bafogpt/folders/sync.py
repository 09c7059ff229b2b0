"""Copy a folder of files between any two of local disk, buckets and the Hub, resumably.

:func:`prepare` finds out what must be sent and sends nothing; :func:`execute` sends it. While files arrive the
target's manifest says ``unfinished``; a repository of the Hub changes by one commit.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files
from bafogpt.core.errors import ConflictError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.core.settings import EMBEDDED
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.hub import push as hub_push
from bafogpt.folders.listing import FileEntry, FileSource, FolderListing, hashed, read, require_unchanged
from bafogpt.folders.manifest import MANIFEST, ManifestState, ModelFile, ModelManifest
from bafogpt.folders.uri import FolderLocation
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.transfer.bandwidth import Bandwidth

SMALL_BYTES = 1 << 20
"""Files up to this size are sent in parallel: an interruption loses no more than one part of a large file."""
SMALL_FILES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class SyncPlan:
    """The files that a copy sends and keeps."""

    listing: FolderListing
    target: FolderLocation
    unchanged: Mapping[str, ModelFile]
    """Files that the target already has, with the same content."""
    finished: bool
    """The target has all files, and the manifest, already."""
    commit: str = ""
    """The Hub's commit that has them."""

    @property
    def to_send(self) -> tuple[FileEntry, ...]:
        return tuple(entry for entry in self.listing.entries if entry.name not in self.unchanged)

    @property
    def bytes_to_send(self) -> int:
        return sum(entry.bytes for entry in self.to_send)


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """The result of a copy."""

    source: str
    target: str
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    seconds: float
    verified_by: str
    commit: str = ""


def prepare(
    source: FolderLocation,
    target: FolderLocation,
    *,
    progress: ProgressCallback | None = None,
    include: Callable[[str], bool] = lambda name: True,
    metadata: Mapping[str, Any] | None = None,
) -> SyncPlan:
    """Find out what a copy from ``source`` to ``target`` must send. ``progress`` counts bytes that are hashed here.

    ``include`` selects files by name. ``metadata`` is added to the source's in the target's manifest and card. Raises
    what :func:`bafogpt.folders.listing.read` raises.
    """
    if source.url == target.url:
        raise UsageError(f"{source.url} is both source and target", "give two different folders")
    listing = read(source)
    listing = replace(
        listing,
        entries=tuple(entry for entry in listing.entries if include(entry.name)),
        foreign=listing.foreign and include(MANIFEST),
        metadata={**listing.metadata, **(metadata or {})},
    )
    if target.hub is not None:
        listing = hashed(listing, sha256=True, progress=progress)
        names, commit = hub_push.compare(listing, target.hub, target.settings)
        unchanged = {entry.name: entry.to_model_file() for entry in listing.entries if entry.name in names}
        return SyncPlan(listing=listing, target=target, unchanged=unchanged, finished=bool(commit), commit=commit)
    objects, manifest = _read_target(target)
    if listing.foreign:
        unchanged = {each.name: each.to_model_file() for each in listing.entries if _is_current(objects, each)}
        finished = True
    else:
        unchanged = _unchanged(listing, target, objects, manifest, progress)
        finished = manifest is not None and manifest.is_complete(unchanged, listing.metadata)
    finished = finished and len(unchanged) == len(listing.entries)
    return SyncPlan(listing=listing, target=target, unchanged=unchanged, finished=finished)


def execute(
    plan: SyncPlan,
    *,
    public: bool = False,
    progress: ProgressCallback = lambda count: None,
    bandwidth: Bandwidth | None = None,
) -> SyncReport:
    """Carry out a plan. ``public`` allows a public repository of the Hub.

    Raises :class:`CorruptError` for damaged content, :class:`~bafogpt.core.errors.DiskFullError`,
    :class:`ConflictError` when another copy to the same folder begins meanwhile, and what :class:`Bucket` raises.
    """
    began, listing, target, commit = time.monotonic(), plan.listing, plan.target, plan.commit
    if target.hub is not None:
        verified_by = "the Hub's own hashes of its files"
        if not plan.finished:
            commit = hub_push.push(
                listing, target.hub, target.settings, public=public, progress=progress, bandwidth=bandwidth
            )
    else:
        is_read = listing.folder is not None
        verified_by = (
            "the hash of what arrived, or reading it back" if is_read else f"{listing.verified_by} of the source"
        )
        if not plan.finished:
            _fill(plan, progress, bandwidth)
    return SyncReport(
        source=listing.location.url,
        target=target.url,
        files=len(listing.entries),
        bytes=listing.bytes,
        sent_files=len(plan.to_send),
        sent_bytes=plan.bytes_to_send,
        seconds=round(time.monotonic() - began, 3),
        verified_by=verified_by,
        commit=commit,
    )


def _read_target(target: FolderLocation) -> tuple[dict[str, ObjectInfo], ModelManifest | None]:
    """The objects and the manifest of the target; nothing where it does not exist yet."""
    if target.local is not None and not target.local.is_dir():
        if target.local.exists():
            raise UsageError(f"{target.local} is a file, not a folder", f"ls -l {target.local}")
        return {}, None
    bucket = target.bucket()
    try:
        objects = {info.path: info for info in bucket.list()}
    except NotFoundError:
        if target.settings.s3_endpoint != EMBEDDED:
            raise
        return {}, None  # a bucket on this machine is created when something is written into it
    return objects, folder_manifest.load(bucket) if MANIFEST in objects else None


def _unchanged(
    listing: FolderListing,
    target: FolderLocation,
    objects: Mapping[str, ObjectInfo],
    manifest: ModelManifest | None,
    progress: ProgressCallback | None,
) -> dict[str, ModelFile]:
    """The files that the target has already: by its manifest while their ETags are the same, else by reading them."""
    listed = {each.name: each for each in manifest.files} if manifest else {}
    trusted, unchanged = [], {}
    for entry in listing.entries:
        file, found = listed.get(entry.name), objects.get(entry.name)
        if found is None or found.bytes != entry.bytes:
            continue
        if file is not None and file.bytes == entry.bytes and file.etag and file.etag == found.etag:
            trusted.append(entry)
        elif target.local is not None and entry.digest and digest.matches(target.local / entry.name, entry.digest):
            unchanged[entry.name] = _local_file(entry, target.local / entry.name, found.etag)
    if listing.folder is not None:  # hashed only now: other files are hashed while they are sent
        trusted = list(hashed(replace(listing, entries=tuple(trusted)), progress=progress).entries)
    for entry in trusted:
        if entry.digest in (listed[entry.name].digest, f"sha256:{listed[entry.name].sha256}"):
            unchanged[entry.name] = listed[entry.name]
    return unchanged


def _is_current(objects: Mapping[str, ObjectInfo], entry: FileEntry) -> bool:
    """Whether the target has an object of that size, no older than the source's."""
    found = objects.get(entry.name)
    if found is None or found.bytes != entry.bytes:
        return False
    return entry.modified is None or found.modified >= entry.modified


def _fill(plan: SyncPlan, progress: ProgressCallback, bandwidth: Bandwidth | None) -> None:
    """Carry out a plan whose target is a local folder or a bucket."""
    target, listing, bucket = plan.target, plan.listing, plan.target.bucket()
    if target.local is not None:
        target.local.mkdir(parents=True, exist_ok=True)
        files.require_space(target.local, plan.bytes_to_send, f"what is at {listing.location.url}")
        for entry in plan.to_send:
            _require_no_link(target.local, entry.name)
    elif target.settings.s3_endpoint == EMBEDDED:
        bucket.create()
    manifest = None if listing.foreign else _ManifestWriter(bucket, plan)

    def move(entry: FileEntry, check: Check) -> None:
        check()
        file = _move(listing, entry, target, bucket, progress, bandwidth)
        if manifest is not None:
            manifest.add(file)

    rest = [entry for entry in plan.to_send if not (listing.foreign and entry.name == MANIFEST)]
    in_parallel(move, [entry for entry in rest if entry.bytes <= SMALL_BYTES], SMALL_FILES_AT_ONCE)
    for entry in rest:
        if entry.bytes > SMALL_BYTES:
            move(entry, lambda: None)
    if manifest is not None:
        manifest.complete()
    elif MANIFEST not in plan.unchanged:
        move(listing.entries[-1], lambda: None)


def _move(
    listing: FolderListing,
    entry: FileEntry,
    target: FolderLocation,
    bucket: Bucket,
    progress: ProgressCallback,
    bandwidth: Bandwidth | None,
) -> ModelFile:
    """Copy one file, verified. Returns its entry in the target's manifest."""
    if target.local is not None and listing.folder is None:
        transfer.fetch(
            listing.bucket,
            entry.object,
            target.local / entry.name,
            size=entry.bytes,
            digest=entry.digest or None,
            progress=progress,
            bandwidth=bandwidth,
        )
        return _local_file(entry, target.local / entry.name, bucket.info(entry.name).etag)
    source = _HashingReader(FileSource(listing, entry), entry.digest)
    sent = transfer.send(source, bucket, entry.name, progress=progress, bandwidth=bandwidth)
    require_unchanged(listing, entry)
    if not source.matched(sent.digest):
        bucket.delete(entry.name)
        raise listing.corrupt(entry)
    return replace(entry.to_model_file(), digest=sent.digest, etag=sent.etag)


def _local_file(entry: FileEntry, path: Path, etag: str) -> ModelFile:
    content = entry.digest if entry.digest.startswith("blake3:") else digest.of_file(path)
    return replace(entry.to_model_file(), digest=content, etag=etag)


def _require_no_link(folder: Path, name: str) -> None:
    """Raise :class:`StorageError` where a symbolic link would lead a file out of the folder."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path} is a symbolic link: what is fetched could leave {folder}", f"rm {path}")


class _HashingReader:
    """A source that computes the sha256 of what is read, where that is the known digest."""

    def __init__(self, source: FileSource, expected: str) -> None:
        self.size = source.size
        self._source = source
        self._expected = expected
        self._hasher = digest.hasher("sha256") if expected.startswith("sha256:") else None
        self._position = 0

    def read(self, start: int, length: int) -> bytes:
        data = self._source.read(start, length)
        if self._hasher is not None and start == self._position:  # in order, and each byte once
            self._hasher.update(data)
            self._position += len(data)
        return data

    def matched(self, blake3: str) -> bool:
        """Whether what was read, whose blake3 is given, has the known digest."""
        if self._hasher is not None:
            return self._position == self.size and f"sha256:{self._hasher.hexdigest()}" == self._expected
        return self._expected in ("", blake3)


class _ManifestWriter:
    """The target's manifest while files arrive: it lists those that are complete."""

    def __init__(self, bucket: Bucket, plan: SyncPlan) -> None:
        self._bucket = bucket
        self._id = uuid.uuid4().hex
        self._metadata = dict(plan.listing.metadata)
        self._files = dict(plan.unchanged)
        self._lock = threading.Lock()
        self._write("unfinished")

    def add(self, file: ModelFile) -> None:
        """List one more file."""
        with self._lock:
            self._require_own()
            self._files[file.name] = file
            self._write("unfinished")

    def complete(self) -> None:
        """Declare the folder complete. Raises :class:`CorruptError` unless it has every file, unchanged."""
        self._require_own()
        objects = {info.path: info for info in self._bucket.list()}
        for file in self._files.values():
            found = objects.get(file.name)
            if found is None or found.bytes != file.bytes or (file.etag and found.etag != file.etag):
                message = f"{self._bucket.url}/{file.name} was changed by another program meanwhile"
                raise CorruptError(message, "repeat the command")
        self._write("complete")

    def _require_own(self) -> None:
        found = folder_manifest.load(self._bucket)
        if found is None or found.writer != self._id:
            raise ConflictError(
                f"another copy to {self._bucket.url} began after this one",
                "wait until it ends, then check the result",
            )

    def _write(self, state: ManifestState) -> None:
        manifest = ModelManifest(
            files=tuple(self._files[name] for name in sorted(self._files)),
            state=state,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            writer=self._id,
            metadata=self._metadata,
        )
        self._bucket.put(MANIFEST, manifest.to_json())
