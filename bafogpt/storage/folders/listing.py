"""What there is to copy at a place: its files by name, and the hashes that are known of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bafogpt.core import digest
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.folders import manifest as folder_manifest
from bafogpt.storage.folders.manifest import MANIFEST
from bafogpt.storage.folders.uri import FolderLocation
from bafogpt.storage.hub.repository import HubRepo
from bafogpt.storage.parallel import in_parallel

HASH_LANES = 4
CHUNK_BYTES = 4 << 20
_STEP = re.compile(r"(step-\d{8,})(?:\.json)?")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file to copy: the name it has in a folder, and the object that holds its content."""

    name: str
    object: str
    bytes: int
    digest: str = ""
    """What the content must have; empty when nobody has said so."""
    sha256: str = ""
    modified: datetime | None = None
    changed_ns: int = 0
    """A local file's time when it was listed: with another it is another file."""


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """A folder's files."""

    location: FolderLocation
    bucket: Bucket
    entries: tuple[FileEntry, ...]
    verified_by: str
    """By what the content can be verified, in words."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    foreign: bool = False
    """The folder has a ``manifest.json`` of another kind: it is one of the files, and the last of them."""

    @property
    def folder(self) -> Path | None:
        """The folder that a person works in, if it is one."""
        return self.location.local if self.location.is_path else None

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)


def read(location: FolderLocation) -> FolderListing:
    """What is at a place: a model folder, a checkpoint (of a folder of them, the newest), or any folder of files.

    Raises :class:`NotFoundError` when nothing is there, :class:`StorageError` for a folder whose push was never
    finished, :class:`UsageError` for a symbolic link, :class:`CorruptError` for names that no folder can have.
    """
    step = None if location.hub or location.is_path else _STEP.fullmatch(location.url.rpartition("/")[2])
    if step is not None:
        return _checkpoint(location, location.parent(), step.group(1))
    if location.local is not None:
        regular = _regular_files(location.local)
        if location.is_path:
            return _own(location, location.local, regular)
    bucket = location.bucket()
    infos = {info.path: info for info in bucket.list()}
    if not infos:
        raise NotFoundError(f"nothing below {location.url}", "bafogpt storage ls")
    steps = sorted(name for name in infos if _STEP.fullmatch(name) and name.endswith(".json"))
    if steps and MANIFEST not in infos:
        return _checkpoint(location, bucket, steps[-1].removesuffix(".json"))
    manifest = folder_manifest.load(bucket) if MANIFEST in infos else None
    if manifest is None:
        return _plain(location, bucket, infos)
    _require_complete(manifest, location)
    entries = tuple(
        FileEntry(name=each.name, object=each.name, bytes=each.bytes, digest=each.digest, sha256=each.sha256)
        for each in manifest.files
    )
    for entry in entries:
        found = infos.get(entry.object)
        if found is None or found.bytes != entry.bytes:
            there = "missing" if found is None else f"{found.bytes} bytes long"
            message = f"{location.url}/{entry.name} is {there}, its manifest says {entry.bytes} bytes"
            raise CorruptError(message, f"bafogpt storage verify {location.url}")
    return FolderListing(
        location=location, bucket=bucket, entries=entries, verified_by="manifest (blake3)", metadata=manifest.metadata
    )


def hashed(listing: FolderListing, *, sha256: bool = False, progress: ProgressCallback | None = None) -> FolderListing:
    """The listing with the blake3 of every file, and with its sha256 where that is asked for.

    Reads what it must, several files at a time. Raises :class:`CorruptError` for content that is not what was said.
    """

    def fill(entry: FileEntry, check: Callable[[], None]) -> FileEntry:
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
            raise CorruptError(
                f"{listing.location.url}/{entry.object}: not what was written", _verify(listing.location)
            )
        return replace(entry, digest=found, sha256=states[1].hexdigest() if sha256 else entry.sha256)

    return replace(listing, entries=tuple(in_parallel(fill, listing.entries, HASH_LANES)))


class FileSource:
    """One file's bytes, read from any position; what a transfer sends."""

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
            raise CorruptError(f"{path} became shorter while it was sent", "give the same command again")
        return data


def require_unchanged(listing: FolderListing, entry: FileEntry) -> None:
    """Raise :class:`StorageError` when a local file is not the one any more that was listed and hashed."""
    if listing.folder is None:
        return
    path = listing.folder / entry.object
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) != (entry.bytes, entry.changed_ns):
        raise StorageError(f"{path} was changed while it was being copied", "give the same command again")


def _content(listing: FolderListing, entry: FileEntry) -> Iterable[bytes]:
    if listing.folder is None:
        yield from listing.bucket.chunks(entry.object)
        return
    with (listing.folder / entry.object).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    require_unchanged(listing, entry)


def _own(location: FolderLocation, folder: Path, regular: list[Path]) -> FolderListing:
    entries = [_entry(folder, path) for path in regular]
    bucket = location.bucket()
    manifest = folder_manifest.load(bucket) if (folder / MANIFEST).is_file() else None
    foreign = manifest is None and any(entry.name == MANIFEST for entry in entries)
    if manifest is not None:
        _require_complete(manifest, location)
    if not foreign:
        entries = [entry for entry in entries if entry.name != MANIFEST]
    if not entries:
        raise NotFoundError(f"there is no file in {folder}", f"ls -la {folder}")
    folder_manifest.check_names((entry.name for entry in entries if entry.name != MANIFEST), str(folder))
    metadata = manifest.metadata if manifest else _facts_of_a_checkpoint(folder / "checkpoint.json")
    return FolderListing(
        location=location,
        bucket=bucket,
        entries=_manifest_last(entries),
        verified_by="manifest (blake3)",
        metadata=metadata,
        foreign=foreign,
    )


def _regular_files(folder: Path) -> list[Path]:
    """Every file below a folder. Raises :class:`UsageError` for a symbolic link, a socket and the like."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {what}", f"ls -d {folder.parent}")
    found = []
    for base, below, names in os.walk(folder):
        for name in [*below, *names]:
            path = Path(base) / name
            if path.is_symlink():
                raise UsageError(f"{path} is a symbolic link", "copy what it points to into the folder, or remove it")
            if name in names:
                if not path.is_file():
                    raise UsageError(f"{path} is not a regular file", f"ls -l {path}")
                found.append(path)
    return sorted(found)


def _entry(folder: Path, path: Path) -> FileEntry:
    name = path.relative_to(folder).as_posix()
    found = path.stat()
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return FileEntry(name=name, object=name, bytes=found.st_size, modified=modified, changed_ns=found.st_mtime_ns)


def _plain(location: FolderLocation, bucket: Bucket, infos: Mapping[str, ObjectInfo]) -> FolderListing:
    """A folder that no manifest of ours speaks for: a repository of the Hub, a dataset, anybody's files."""
    known = bucket if isinstance(bucket, HubRepo) else None
    names = [name for name in infos if known is None or name != ".gitattributes"]
    folder_manifest.check_names((name for name in names if name != MANIFEST), location.url)
    entries = [
        FileEntry(
            name=name,
            object=name,
            bytes=infos[name].bytes,
            digest=(known.digest(name) or "") if known else "",
            sha256=(known.digest(name) or "").removeprefix("sha256:") if known else "",
            modified=infos[name].modified,
        )
        for name in names
    ]
    verified_by = "the Hub's sha256 and git hashes" if known else "sizes only"
    return FolderListing(
        location=location,
        bucket=bucket,
        entries=_manifest_last(entries),
        verified_by=verified_by,
        foreign=MANIFEST in infos,
    )


def _manifest_last(entries: list[FileEntry]) -> tuple[FileEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: (entry.name == MANIFEST, entry.name)))


def _checkpoint(location: FolderLocation, bucket: Bucket, name: str) -> FolderListing:
    where = f"{bucket.url}/{name}.json"
    checkpoint = Checkpoint.from_json(bucket.get(f"{name}.json"), where)
    entries = tuple(
        FileEntry(name=file.name, object=file.object, bytes=file.bytes, digest=file.digest) for file in checkpoint.files
    )
    folder_manifest.check_names((entry.name for entry in entries), where)
    facts = {"step": checkpoint.step, "samples": checkpoint.samples, **_facts_of_a_run(bucket)}
    return FolderListing(
        location=location, bucket=bucket, entries=entries, verified_by="manifest (blake3)", metadata=facts
    )


def _facts_of_a_run(checkpoints: Bucket) -> dict[str, Any]:
    """What the run's record, beside its folder of checkpoints, says of the model: for its card."""
    run = Bucket.open(checkpoints.url.rpartition("/")[0], checkpoints.address("")[0].settings)
    try:
        record = json.loads(run.get("run.json"))
        train = record["job"]["train"]
        facts = {"run": record["name"], "model": train["model"]["name"], "dataset": train["data"]["path"]}
        return {**facts, "sequence_length": train["data"]["sequence_length"], "precision": train["precision"]}
    except (ConfigError, NotFoundError, ValueError, KeyError, TypeError):  # checkpoints without a run are fine
        return {}


def _facts_of_a_checkpoint(path: Path) -> dict[str, Any]:
    """The same from a trainer's own ``checkpoint.json``, if that is what a local folder has."""
    try:
        record = json.loads(path.read_bytes())
        return {name: record[name] for name in ("step", "samples") if isinstance(record.get(name), int)}
    except (OSError, ValueError, AttributeError):
        return {}


def _require_complete(manifest: folder_manifest.ModelManifest, location: FolderLocation) -> None:
    if manifest.state != "complete":
        raise StorageError(
            f"{location.url} is unfinished: what was copying to it was cut off", "give that command again; it goes on"
        )


def _verify(location: FolderLocation) -> str:
    return f"bafogpt storage verify {location.url}"
