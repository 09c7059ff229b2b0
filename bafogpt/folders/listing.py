"""The files to copy from a folder, by name, with the hashes that are known of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bafogpt.core import digest
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.hub.repository import HubRepo
from bafogpt.folders.manifest import MANIFEST, ModelFile, ModelManifest
from bafogpt.folders.uri import FolderLocation
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.parallel import Check, in_parallel

FILES_AT_ONCE = 4
CHUNK_BYTES = 4 << 20
_STEP = re.compile(r"(step-\d{8,})(?:\.json)?")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file to copy: its name in the folder, and the object that holds its content."""

    name: str
    object: str
    bytes: int
    digest: str = ""
    """Of the content; empty where it is unknown."""
    sha256: str = ""
    modified: datetime | None = None
    changed_ns: int = 0
    """Modification time of a local file when it was listed."""

    def to_model_file(self) -> ModelFile:
        return ModelFile(name=self.name, bytes=self.bytes, digest=self.digest, sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """The files of a folder."""

    location: FolderLocation
    bucket: Bucket
    entries: tuple[FileEntry, ...]
    verified_by: str = "manifest (blake3)"
    """How the content can be verified, in words."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    foreign: bool = False
    """The folder has a ``manifest.json`` of another kind, which is copied as the last of its files."""

    @property
    def folder(self) -> Path | None:
        """The local working folder, if it is one."""
        return self.location.local if self.location.is_path else None

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def corrupt(self, entry: FileEntry) -> CorruptError:
        """The error for content that does not match its digest."""
        url = self.location.url
        return CorruptError(f"{url}/{entry.object}: does not match its hash", f"bafogpt storage verify {url}")


class FileSource:
    """The bytes of one file of a listing, read from any position."""

    def __init__(self, listing: FolderListing, entry: FileEntry) -> None:
        self._listing = listing
        self._entry = entry
        self.size = entry.bytes

    def read(self, start: int, length: int) -> bytes:
        """Exactly those bytes, or :class:`CorruptError`."""
        if self._listing.folder is None:
            return bytes(self._listing.bucket.get_range(self._entry.object, start, length))
        path = self._listing.folder / self._entry.object
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise CorruptError(f"{path} became shorter while it was sent", "repeat the command")
        return data


def read(location: FolderLocation) -> FolderListing:
    """List a model folder, a checkpoint (of a folder of them, the newest), or any folder of files.

    Raises :class:`NotFoundError` for an empty folder, :class:`StorageError` for one whose push was interrupted,
    :class:`UsageError` for a symbolic link, :class:`CorruptError` for names that no folder can have.
    """
    step = None if location.hub or location.is_path else _STEP.fullmatch(location.url.rpartition("/")[2])
    if step is not None:
        return _read_checkpoint(location, location.parent(), step.group(1))
    if location.local is not None:
        files = _regular_files(location.local)
        if location.is_path:
            return _read_working_folder(location, location.local, files)
    bucket = location.bucket()
    infos = {info.path: info for info in bucket.list()}
    if not infos:
        raise NotFoundError(f"nothing below {location.url}", "bafogpt storage ls")
    steps = sorted(name for name in infos if _STEP.fullmatch(name) and name.endswith(".json"))
    if steps and MANIFEST not in infos:
        return _read_checkpoint(location, bucket, steps[-1].removesuffix(".json"))
    manifest = folder_manifest.load(bucket) if MANIFEST in infos else None
    if manifest is None:
        return _read_without_manifest(location, bucket, infos)
    _require_complete(manifest, location)
    for each in manifest.files:
        found = infos.get(each.name)
        if found is None or found.bytes != each.bytes:
            state = "missing" if found is None else f"{found.bytes} bytes long"
            message = f"{location.url}/{each.name} is {state}, its manifest says {each.bytes} bytes"
            raise CorruptError(message, f"bafogpt storage verify {location.url}")
    entries = tuple(
        FileEntry(name=each.name, object=each.name, bytes=each.bytes, digest=each.digest, sha256=each.sha256)
        for each in manifest.files
    )
    return FolderListing(location=location, bucket=bucket, entries=entries, metadata=manifest.metadata)


def hashed(listing: FolderListing, *, sha256: bool = False, progress: ProgressCallback | None = None) -> FolderListing:
    """The listing with the blake3, and if ``sha256`` the sha256, of every file; reads only files that lack one.

    Raises :class:`CorruptError` for content that does not match a known digest.
    """

    def fill(entry: FileEntry, check: Check) -> FileEntry:
        if entry.digest.startswith("blake3:") and (entry.sha256 or not sha256):
            return entry
        states = [digest.hasher("blake3"), *([digest.hasher("sha256")] if sha256 else [])]
        for chunk in _content(listing, entry):
            check()
            for state in states:
                state.update(chunk)
            if progress:
                progress(len(chunk))
        found = f"blake3:{states[0].hexdigest()}"
        if entry.digest.startswith("blake3:") and entry.digest != found:
            raise listing.corrupt(entry)
        return replace(entry, digest=found, sha256=states[1].hexdigest() if sha256 else entry.sha256)

    return replace(listing, entries=tuple(in_parallel(fill, listing.entries, FILES_AT_ONCE)))


def require_unchanged(listing: FolderListing, entry: FileEntry) -> None:
    """Raise :class:`StorageError` when a local file has changed since it was listed."""
    if listing.folder is None:
        return
    path = listing.folder / entry.object
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) != (entry.bytes, entry.changed_ns):
        raise StorageError(f"{path} was changed while it was being copied", "repeat the command")


def _content(listing: FolderListing, entry: FileEntry) -> Iterator[bytes]:
    if listing.folder is None:
        yield from listing.bucket.chunks(entry.object)
        return
    with (listing.folder / entry.object).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    require_unchanged(listing, entry)


def _read_working_folder(location: FolderLocation, folder: Path, files: list[Path]) -> FolderListing:
    """A local folder given by its path: its files as they are now."""
    bucket = location.bucket()
    manifest = folder_manifest.load(bucket) if (folder / MANIFEST).is_file() else None
    if manifest is not None:
        _require_complete(manifest, location)
        files = [path for path in files if path != folder / MANIFEST]
    if not files:
        raise NotFoundError(f"no files in {folder}", f"ls -la {folder}")
    entries = [_local_entry(folder, path) for path in files]
    return FolderListing(
        location=location,
        bucket=bucket,
        entries=_checked(entries, str(folder)),
        metadata=manifest.metadata if manifest else _checkpoint_metadata(folder / "checkpoint.json"),
        foreign=manifest is None and any(entry.name == MANIFEST for entry in entries),
    )


def _regular_files(folder: Path) -> list[Path]:
    """Every file below a folder. Raises :class:`UsageError` for a symbolic link, a socket and the like."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {what}", f"ls -d {folder.parent}")
    found = []
    for base, below, names in os.walk(folder):
        for path in (Path(base) / name for name in [*below, *names]):
            if path.is_symlink():
                raise UsageError(f"{path} is a symbolic link", "copy what it points to into the folder, or remove it")
            if path.is_dir():
                continue
            if not path.is_file():
                raise UsageError(f"{path} is not a regular file", f"ls -l {path}")
            found.append(path)
    return sorted(found)


def _local_entry(folder: Path, path: Path) -> FileEntry:
    name = path.relative_to(folder).as_posix()
    found = path.stat()
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return FileEntry(name=name, object=name, bytes=found.st_size, modified=modified, changed_ns=found.st_mtime_ns)


def _read_without_manifest(location: FolderLocation, bucket: Bucket, infos: Mapping[str, ObjectInfo]) -> FolderListing:
    """A repository of the Hub, a dataset, or any other folder without a manifest of model files."""
    is_hub = isinstance(bucket, HubRepo)
    digests = {name: bucket.digest(name) or "" if isinstance(bucket, HubRepo) else "" for name in infos}
    entries = [
        FileEntry(
            name=name,
            object=name,
            bytes=info.bytes,
            digest=digests[name],
            sha256=digests[name].removeprefix("sha256:"),
            modified=info.modified,
        )
        for name, info in infos.items()
        if not (is_hub and name == ".gitattributes")
    ]
    return FolderListing(
        location=location,
        bucket=bucket,
        entries=_checked(entries, location.url),
        verified_by="the Hub's sha256 and git hashes" if is_hub else "sizes only",
        foreign=MANIFEST in infos,
    )


def _checked(entries: list[FileEntry], where: str) -> tuple[FileEntry, ...]:
    """The entries sorted, a manifest last. Raises :class:`CorruptError` for names that no folder can have."""
    folder_manifest.check_names((entry.name for entry in entries if entry.name != MANIFEST), where)
    return tuple(sorted(entries, key=lambda entry: (entry.name == MANIFEST, entry.name)))


def _read_checkpoint(location: FolderLocation, bucket: Bucket, name: str) -> FolderListing:
    where = f"{bucket.url}/{name}.json"
    checkpoint = Checkpoint.from_json(bucket.get(f"{name}.json"), where)
    entries = tuple(
        FileEntry(name=file.name, object=file.object, bytes=file.bytes, digest=file.digest) for file in checkpoint.files
    )
    folder_manifest.check_names((entry.name for entry in entries), where)
    metadata = {"step": checkpoint.step, "samples": checkpoint.samples, **_run_metadata(bucket)}
    return FolderListing(location=location, bucket=bucket, entries=entries, metadata=metadata)


def _run_metadata(checkpoints: Bucket) -> dict[str, Any]:
    """Facts about the model from the record of the run that the checkpoints belong to."""
    run = Bucket.open(checkpoints.url.rpartition("/")[0], checkpoints.address("")[0].settings)
    try:
        record = json.loads(run.get("run.json"))
        train = record["job"]["train"]
        facts = {"run": record["name"], "model": train["model"]["name"], "dataset": train["data"]["path"]}
        return {**facts, "sequence_length": train["data"]["sequence_length"], "precision": train["precision"]}
    except (ConfigError, NotFoundError, ValueError, KeyError, TypeError):  # checkpoints without a run are fine
        return {}


def _checkpoint_metadata(path: Path) -> dict[str, Any]:
    """Facts about the model from a trainer's ``checkpoint.json``, if the folder has one."""
    try:
        record = json.loads(path.read_bytes())
        return {name: record[name] for name in ("step", "samples") if isinstance(record.get(name), int)}
    except (OSError, ValueError, AttributeError):
        return {}


def _require_complete(manifest: ModelManifest, location: FolderLocation) -> None:
    if manifest.state != "complete":
        raise StorageError(
            f"{location.url} is unfinished: the copy to it was interrupted", "repeat that command to resume"
        )
