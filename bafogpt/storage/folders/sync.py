"""Copying a folder of files from anywhere to anywhere: what is there already stays, what is cut off goes on.

:func:`prepare` finds out what must be sent and sends nothing; :func:`execute` does it. The folder that is written to
says ``unfinished`` in its manifest until every file is there; a repository of the Hub changes by one commit.
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
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.folders import manifest as folder_manifest
from bafogpt.storage.folders.listing import FileEntry, FileSource, FolderListing, hashed, read, require_unchanged
from bafogpt.storage.folders.manifest import MANIFEST, ModelFile, ModelManifest
from bafogpt.storage.folders.uri import FolderLocation
from bafogpt.storage.hub import push as hub_push
from bafogpt.storage.parallel import in_parallel
from bafogpt.storage.transfer.bandwidth import Bandwidth
from bafogpt.storage.transfer.upload import deliver

SMALL_BYTES = 1 << 20
"""Files up to this size go side by side: all that a kill can cost then is no more than a part of a large one."""
SMALL_LANES = 8


@dataclass(frozen=True, kw_only=True)
class SyncPlan:
    """What a copy would do."""

    listing: FolderListing
    target: FolderLocation
    unchanged: Mapping[str, ModelFile]
    """Files that are at the target already, as they must be."""
    finished: bool
    """Nothing is left to do: files, manifest and all."""

    @property
    def to_send(self) -> tuple[FileEntry, ...]:
        return tuple(entry for entry in self.listing.entries if entry.name not in self.unchanged)

    @property
    def bytes_to_send(self) -> int:
        return sum(entry.bytes for entry in self.to_send)


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a copy did."""

    source: str
    target: str
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    seconds: float
    verified_by: str
    """How it is known that the content is right."""
    commit: str = ""


def prepare(
    source: FolderLocation,
    target: FolderLocation,
    *,
    progress: ProgressCallback | None = None,
    include: Callable[[str], bool] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SyncPlan:
    """Find out what a copy from ``source`` to ``target`` must send. ``progress`` counts bytes that are hashed here.

    ``include`` says of a name whether that file is part of the copy; without it all are. ``metadata`` go into the
    target's manifest, and its card, beside what the source's says.
    Raises what :func:`bafogpt.storage.folders.listing.read` does.
    """
    if source.url == target.url:
        raise UsageError(f"{source.url} is source and target", "name two places")
    listing = read(source)
    if include is not None:
        entries = tuple(entry for entry in listing.entries if include(entry.name))
        listing = replace(listing, entries=entries, foreign=listing.foreign and include(MANIFEST))
    if metadata is not None:
        listing = replace(listing, metadata={**listing.metadata, **metadata})
    if target.hub is not None:
        listing = hashed(listing, sha256=True, progress=progress)
        names = hub_push.unchanged(listing, target.hub, target.settings)
        unchanged = {entry.name: _file(entry) for entry in listing.entries if entry.name in names}
        finished = bool(hub_push.is_current(listing, target.hub, target.settings))
        return SyncPlan(listing=listing, target=target, unchanged=unchanged, finished=finished)
    there, manifest = _there(target)
    if listing.foreign:
        unchanged = {
            entry.name: _file(entry) for entry in listing.entries if _is_not_older(there.get(entry.name), entry)
        }
        return SyncPlan(
            listing=listing, target=target, unchanged=unchanged, finished=len(unchanged) == len(listing.entries)
        )
    unchanged = _kept(listing, target, there, manifest, progress)
    same = manifest is not None and manifest.state == "complete" and manifest.metadata == dict(listing.metadata)
    finished = same and manifest is not None and {each.name for each in manifest.files} == set(unchanged)
    return SyncPlan(
        listing=listing,
        target=target,
        unchanged=unchanged,
        finished=finished and len(unchanged) == len(listing.entries),
    )


def execute(
    plan: SyncPlan,
    *,
    public: bool = False,
    progress: ProgressCallback = lambda count: None,
    bandwidth: Bandwidth | None = None,
) -> SyncReport:
    """Do what a plan says. ``public`` allows a repository of the Hub that everybody sees.

    Raises :class:`CorruptError` for content that is not what it should be, :class:`DiskFullError`,
    :class:`ConflictError` when another copy to the same folder begins meanwhile, and what :class:`Bucket` raises.
    """
    began = time.monotonic()
    commit = ""
    verified_by = f"{plan.listing.verified_by} of the source"
    if plan.target.hub is not None:
        verified_by = "the Hub's own hashes of what it holds"
        if plan.finished:
            commit = hub_push.is_current(plan.listing, plan.target.hub, plan.target.settings)
        else:
            commit = hub_push.push(
                plan.listing,
                plan.target.hub,
                plan.target.settings,
                public=public,
                progress=progress,
                bandwidth=bandwidth,
            )
    elif not plan.finished:
        _fill(plan, progress, bandwidth)
    if plan.listing.folder is not None and plan.target.hub is None:
        verified_by = "the hash of what arrived, or reading it back"
    return SyncReport(
        source=plan.listing.location.url,
        target=plan.target.url,
        files=len(plan.listing.entries),
        bytes=plan.listing.bytes,
        sent_files=len(plan.to_send),
        sent_bytes=plan.bytes_to_send,
        seconds=round(time.monotonic() - began, 3),
        verified_by=verified_by,
        commit=commit,
    )


class _ManifestWriter:
    """The target's manifest while its files arrive: always of those that are whole."""

    def __init__(self, bucket: Bucket, plan: SyncPlan) -> None:
        self._bucket = bucket
        self._writer = uuid.uuid4().hex
        self._metadata = dict(plan.listing.metadata)
        self._files = dict(plan.unchanged)
        self._lock = threading.Lock()
        self._write("unfinished")

    def add(self, file: ModelFile) -> None:
        """One more file is whole."""
        with self._lock:
            self._require_own()
            self._files[file.name] = file
            self._write("unfinished")

    def complete(self) -> None:
        """All are. Raises :class:`CorruptError` unless they all are there, as they were when they arrived."""
        self._require_own()
        there = {info.path: info for info in self._bucket.list()}
        for file in self._files.values():
            found = there.get(file.name)
            if found is None or found.bytes != file.bytes or (file.etag and found.etag != file.etag):
                raise CorruptError(
                    f"{self._bucket.url}/{file.name} was changed by somebody else meanwhile", "give the command again"
                )
        self._write("complete")

    def _require_own(self) -> None:
        found = folder_manifest.load(self._bucket)
        if found is None or found.writer != self._writer:
            raise ConflictError(
                f"another copy to {self._bucket.url} began after this one",
                "wait until it ends, then look at what is there",
            )

    def _write(self, state: folder_manifest.ManifestState) -> None:
        manifest = ModelManifest(
            files=tuple(self._files[name] for name in sorted(self._files)),
            state=state,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            writer=self._writer,
            metadata=self._metadata,
        )
        self._bucket.put(MANIFEST, manifest.to_json())


def _there(target: FolderLocation) -> tuple[dict[str, ObjectInfo], ModelManifest | None]:
    """What the target holds now. Raises :class:`ConflictError` when that is a folder of another kind."""
    if target.local is not None and not target.local.is_dir():
        if target.local.exists():
            raise UsageError(f"{target.local} is a file, not a folder", f"ls -l {target.local}")
        return {}, None
    bucket = target.bucket()
    try:
        there = {info.path: info for info in bucket.list()}
    except NotFoundError:
        if target.settings.s3_endpoint != EMBEDDED:
            raise
        return {}, None  # on this machine a bucket costs nothing; it is made when there is something to put into it
    return there, folder_manifest.load(bucket) if MANIFEST in there else None


def _kept(
    listing: FolderListing,
    target: FolderLocation,
    there: Mapping[str, ObjectInfo],
    manifest: ModelManifest | None,
    progress: ProgressCallback | None,
) -> dict[str, ModelFile]:
    """The files that need not be sent: the target's manifest says what they hold, nobody has touched them since, and
    the source holds the same. A local file without such a witness is read."""
    known = {each.name: each for each in manifest.files} if manifest else {}
    unchanged: dict[str, ModelFile] = {}
    candidates = []
    for entry in listing.entries:
        file, found = known.get(entry.name), there.get(entry.name)
        if found is None or found.bytes != entry.bytes:
            continue
        if file is not None and file.bytes == entry.bytes and file.etag and file.etag == found.etag:
            candidates.append((entry, file))
        elif target.local is not None and entry.digest and digest.matches(target.local / entry.name, entry.digest):
            content = entry.digest if entry.digest.startswith("blake3:") else digest.of_file(target.local / entry.name)
            unchanged[entry.name] = replace(_file(entry), digest=content, etag=found.etag)
    if listing.folder is not None:  # hashed now, and only these
        only = replace(listing, entries=tuple(entry for entry, _ in candidates))
        candidates = list(zip(hashed(only, progress=progress).entries, (file for _, file in candidates), strict=True))
    for entry, file in candidates:
        sha256 = entry.digest.removeprefix("sha256:") if entry.digest.startswith("sha256:") else ""
        if entry.digest == file.digest or (sha256 and sha256 == file.sha256):
            unchanged[entry.name] = file
    return unchanged


def _is_not_older(found: ObjectInfo | None, entry: FileEntry) -> bool:
    return found is not None and found.bytes == entry.bytes and (not entry.modified or found.modified >= entry.modified)


def _fill(plan: SyncPlan, progress: ProgressCallback, bandwidth: Bandwidth | None) -> None:
    """Bring a folder here or in a bucket to what the plan says."""
    target = plan.target
    bucket = target.bucket()
    if target.local is not None:
        target.local.mkdir(parents=True, exist_ok=True)
        files.require_space(target.local, plan.bytes_to_send, f"what is at {plan.listing.location.url}")
        for entry in plan.to_send:
            _require_no_link(target.local, entry.name)
    elif target.settings.s3_endpoint == EMBEDDED:
        bucket.create()
    marker = None if plan.listing.foreign else _ManifestWriter(bucket, plan)

    def move(entry: FileEntry, check: Callable[[], None]) -> None:
        check()
        file = _move(plan.listing, entry, target, bucket, progress, bandwidth)
        if marker is not None:
            marker.add(file)

    rest = [entry for entry in plan.to_send if not (plan.listing.foreign and entry.name == MANIFEST)]
    in_parallel(move, [entry for entry in rest if entry.bytes <= SMALL_BYTES], SMALL_LANES)
    for entry in rest:
        if entry.bytes > SMALL_BYTES:
            move(entry, lambda: None)
    if marker is not None:
        marker.complete()
    elif MANIFEST not in plan.unchanged:
        move(plan.listing.entries[-1], lambda: None)


def _move(
    listing: FolderListing,
    entry: FileEntry,
    target: FolderLocation,
    bucket: Bucket,
    progress: ProgressCallback,
    bandwidth: Bandwidth | None,
) -> ModelFile:
    """One file, from wherever it is; what it is at the target."""
    if target.local is not None and listing.folder is None:
        path = target.local / entry.name
        transfer.fetch(
            listing.bucket,
            entry.object,
            path,
            size=entry.bytes,
            digest=entry.digest or None,
            progress=progress,
            bandwidth=bandwidth,
        )
        content = entry.digest if entry.digest.startswith("blake3:") else digest.of_file(path)
        return replace(_file(entry), digest=content, etag=bucket.info(entry.name).etag)
    source = _Witness(FileSource(listing, entry), entry)
    sent = deliver(source, bucket, entry.name, progress=progress, bandwidth=bandwidth)
    require_unchanged(listing, entry)
    if not source.saw(sent.digest):
        bucket.delete(entry.name)
        raise CorruptError(
            f"{listing.location.url}/{entry.object}: not what was written",
            f"bafogpt storage verify {listing.location.url}",
        )
    return replace(_file(entry), digest=sent.digest, etag=sent.etag)


class _Witness:
    """A source whose bytes are hashed as they pass when their sha256 is what is known of them."""

    def __init__(self, source: FileSource, entry: FileEntry) -> None:
        self.size = source.size
        self._source = source
        self._wanted = entry.digest
        self._hasher = digest.hasher("sha256") if entry.digest.startswith("sha256:") else None
        self._seen = 0

    def read(self, start: int, length: int) -> bytes:
        data = self._source.read(start, length)
        if self._hasher is not None and start == self._seen:  # in order, and each byte once
            self._hasher.update(data)
            self._seen += len(data)
        return data

    def saw(self, blake3: str) -> bool:
        """Whether what passed is what it should be. ``blake3`` is that of what passed."""
        if self._hasher is not None:
            return self._seen == self.size and f"sha256:{self._hasher.hexdigest()}" == self._wanted
        return not self._wanted or self._wanted == blake3


def _file(entry: FileEntry) -> ModelFile:
    return ModelFile(name=entry.name, bytes=entry.bytes, digest=entry.digest, sha256=entry.sha256)


def _require_no_link(folder: Path, name: str) -> None:
    """Raise :class:`StorageError` where a symbolic link would lead a file out of the folder."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path} is a symbolic link: what is fetched could leave {folder}", f"rm {path}")
