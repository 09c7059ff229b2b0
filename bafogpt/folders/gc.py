"""Verify, measure and clean a bucket by its manifests.

The manifests are those of model folders, datasets and checkpoints. What they do not cover, such as a run's records or
a folder of other files, is neither verified nor removed.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, cast

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError, UsageError
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.manifest import MANIFEST
from bafogpt.storage import json_manifest
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.parallel import Check, in_parallel
from bafogpt.storage.tokens import manifest as token_manifest
from bafogpt.storage.tokens.manifest import HASH_CHARS, ITEM_BYTES, TokenManifest
from bafogpt.storage.transfer import multipart
from bafogpt.storage.transfer.multipart import MultipartUpload, UploadEndedError

log = logging.getLogger(__name__)
OBJECTS_AT_ONCE = 4
FolderKind = Literal["model", "dataset", "checkpoint"]
_CHECKPOINT = re.compile(r"(?:(?P<folder>.*)/)?step-\d{8,}\.json")
_UPLOAD = re.compile(r"step-\d{8,}/")


@dataclass(frozen=True)
class TrackedObject:
    """An object that a manifest names. ``hashes`` are those of its consecutive blocks of ``block_bytes`` bytes."""

    path: str
    bytes: int
    algorithm: str
    hashes: tuple[str, ...]
    block_bytes: int


@dataclass(frozen=True)
class ManifestFolder:
    """A folder with a manifest, or with the manifests of its checkpoints."""

    path: str
    kind: FolderKind
    manifests: tuple[str, ...]
    objects: tuple[TrackedObject, ...]
    problems: tuple[str, ...] = ()
    """Unreadable manifests; while there are any, nothing below the folder is removed."""
    unfinished: bool = False


@dataclass(frozen=True)
class BucketContents:
    """The objects of a bucket, or of a folder in one, and the folders with manifests."""

    bucket: Bucket
    objects: Mapping[str, ObjectInfo]
    folders: tuple[ManifestFolder, ...]

    @property
    def tracked(self) -> dict[str, TrackedObject]:
        """Every object that a manifest names, by path."""
        return {each.path: each for folder in self.folders for each in folder.objects}

    def folder_of(self, path: str) -> ManifestFolder | None:
        """The deepest folder with manifests above an object."""
        above = [each for each in self.folders if not each.path or path.startswith(f"{each.path}/")]
        return max(above, key=lambda each: len(each.path), default=None)


@dataclass(frozen=True)
class Garbage:
    """An object that no manifest names, or an upload that was never completed."""

    path: str
    bytes: int
    modified: datetime
    reason: str
    upload: MultipartUpload | None = field(default=None, repr=False)


def scan(bucket: Bucket) -> BucketContents:
    """List everything below ``bucket`` and read its manifests."""
    objects = {info.path: info for info in bucket.list()}
    folders: list[ManifestFolder] = []
    steps: dict[str, list[str]] = defaultdict(list)
    for path in objects:
        if path == MANIFEST or path.endswith(f"/{MANIFEST}"):
            folders += _read_manifest(bucket, path, objects)
        elif match := _CHECKPOINT.fullmatch(path):
            steps[match["folder"] or ""].append(path)
    folders += [_read_checkpoints(bucket, folder, paths) for folder, paths in steps.items()]
    return BucketContents(bucket, objects, tuple(sorted(folders, key=lambda each: each.path)))


def verify(contents: BucketContents, progress: ProgressCallback = lambda count: None) -> list[str]:
    """Read every byte. Returns the problems: unreadable manifests, unfinished folders, missing and damaged objects.

    Raises :class:`NotFoundError` when there is no manifest.
    """
    url = contents.bucket.url
    if not contents.folders:
        raise NotFoundError(f"nothing below {url} has a manifest to verify by", f"bafogpt storage du {url}")
    problems = [problem for folder in contents.folders for problem in folder.problems]
    for folder in contents.folders:
        if folder.unfinished:
            problems.append(f"{_join(url, folder.path)} is unfinished: the copy to it was interrupted")

    def check(tracked: TrackedObject, go_on: Check) -> list[str]:
        go_on()
        found, where = contents.objects.get(tracked.path), f"{url}/{tracked.path}"
        if found is None:
            return [f"{where} is missing"]
        if found.bytes != tracked.bytes:
            return [f"{where} has {found.bytes} bytes, not {tracked.bytes}"]
        damaged = _damaged_blocks(contents.bucket, tracked, progress)
        return [f"{where}{block} does not match its hash" for block in damaged]

    for found in in_parallel(check, list(contents.tracked.values()), OBJECTS_AT_ONCE):
        problems += found
    return problems


def bytes_to_verify(contents: BucketContents) -> int:
    """The number of bytes that :func:`verify` reads."""
    return sum(contents.objects[path].bytes for path in contents.tracked if path in contents.objects)


def garbage(contents: BucketContents, older_than: timedelta, now: datetime) -> list[Garbage]:
    """Objects that no manifest names, in folders that have manifests, and abandoned uploads.

    Only what is older than ``older_than`` by the server's times. A folder with an unreadable manifest has no garbage,
    because that manifest may name it.
    """
    latest = now - older_than
    named = {*contents.tracked, *(path for folder in contents.folders for path in folder.manifests)}
    found = []
    for path, info in contents.objects.items():
        folder = contents.folder_of(path)
        if folder is None or path in named or info.modified > latest:
            continue
        if folder.problems:
            log.warning("%s is kept: a manifest of its folder cannot be read", path)
        elif folder.kind != "checkpoint" or _UPLOAD.match(path[len(folder.path) :].lstrip("/")):
            found.append(Garbage(path, info.bytes, info.modified, f"no manifest of the {folder.kind} names it"))
    return found + list(_abandoned_uploads(contents.bucket, latest))


def remove(bucket: Bucket, what: list[Garbage]) -> None:
    """Delete the objects and abort the uploads."""

    def one(each: Garbage, check: Check) -> None:
        check()
        if each.upload is not None:
            each.upload.abort()
        else:
            bucket.delete(each.path)

    in_parallel(one, what, OBJECTS_AT_ONCE)


def usage(bucket: Bucket, depth: int = 1) -> list[tuple[str, int, int]]:
    """(folder, objects, bytes) of each folder ``depth`` levels down; objects above that count to their own folder."""
    if depth < 1:
        raise UsageError(f"--depth {depth}: at least 1", "--depth 1")
    sizes: dict[str, list[int]] = defaultdict(list)
    for info in bucket.list():
        sizes["/".join(info.path.split("/")[:-1][:depth])].append(info.bytes)
    return [(folder, len(sizes[folder]), sum(sizes[folder])) for folder in sorted(sizes)]


def _read_manifest(bucket: Bucket, path: str, objects: Mapping[str, ObjectInfo]) -> Iterator[ManifestFolder]:
    """The folder of a ``manifest.json``; nothing for a manifest of another program."""
    folder, where = path.rpartition("/")[0], f"{bucket.url}/{path}"
    data = bucket.get(path)
    form = json_manifest.format_of(data)
    if not form.startswith("bafogpt."):
        return
    kind: FolderKind = "dataset" if form.startswith("bafogpt.tokens/") else "model"
    try:
        if kind == "dataset":
            tracked = tuple(_objects_of_tokens(token_manifest.from_json(data, where), folder, objects))
            yield ManifestFolder(folder, kind, (path,), tracked)
        else:
            manifest = folder_manifest.from_json(data, where)
            tracked = tuple(_single_hash(_join(folder, each.name), each.bytes, each.digest) for each in manifest.files)
            yield ManifestFolder(folder, kind, (path,), tracked, unfinished=manifest.state != "complete")
    except CorruptError as error:
        yield ManifestFolder(folder, kind, (path,), (), (error.message,))


def _read_checkpoints(bucket: Bucket, folder: str, paths: list[str]) -> ManifestFolder:
    tracked, problems = [], []
    for path in paths:
        try:
            checkpoint = Checkpoint.from_json(bucket.get(path), f"{bucket.url}/{path}")
        except CorruptError as error:
            problems.append(error.message)
            continue
        tracked += [_single_hash(_join(folder, file.object), file.bytes, file.digest) for file in checkpoint.files]
    return ManifestFolder(folder, "checkpoint", tuple(paths), tuple(tracked), tuple(problems))


def _objects_of_tokens(
    tokens: TokenManifest, folder: str, objects: Mapping[str, ObjectInfo]
) -> Iterator[TrackedObject]:
    for split in tokens.splits.values():
        for shard in split.shards:
            hashes = tuple(shard.blocks[i : i + HASH_CHARS] for i in range(0, len(shard.blocks), HASH_CHARS))
            size = shard.tokens * ITEM_BYTES[tokens.dtype]
            yield TrackedObject(_join(folder, shard.object), size, "xxh3", hashes, tokens.block_bytes)
            yield _single_hash(_join(folder, shard.docs_object), 8 * shard.documents, shard.docs_digest)
            if tokens.packing is not None:
                yield _single_hash(_join(folder, shard.answers_object), 16 * shard.answers, shard.answers_digest)
    tokenizer = _join(folder, "tokenizer/tokenizer.json")
    if tokenizer in objects:  # a tokenizer that is known by name alone has no file
        yield _single_hash(tokenizer, objects[tokenizer].bytes, tokens.tokenizer.digest)


def _single_hash(path: str, size: int, content: str) -> TrackedObject:
    algorithm, _, value = content.partition(":")
    return TrackedObject(path, size, algorithm, (value,), max(size, 1))


def _damaged_blocks(bucket: Bucket, tracked: TrackedObject, progress: ProgressCallback) -> list[str]:
    """The blocks that do not match, as ``" bytes 0-99"``; ``""`` for an object of one block."""
    algorithm, single, damaged = cast(digest.Algorithm, tracked.algorithm), len(tracked.hashes) == 1, []

    def read(start: int, length: int) -> Iterator[bytes]:
        whole = bucket.chunks(tracked.path) if single else None  # may not fit into memory
        for chunk in whole or [bytes(bucket.get_range(tracked.path, start, length))]:
            progress(len(chunk))
            yield chunk

    for number, expected in enumerate(tracked.hashes):
        start = number * tracked.block_bytes
        length = min(tracked.block_bytes, tracked.bytes - start)
        try:
            found = digest.of_chunks(read(start, length), algorithm)
        except (CorruptError, NotFoundError):
            found = ""
        if found != f"{algorithm}:{expected}":
            damaged.append("" if single else f" bytes {start}-{start + length - 1}")
    return damaged


def _abandoned_uploads(bucket: Bucket, latest: datetime) -> Iterator[Garbage]:
    """Multipart uploads that began before ``latest``."""
    for upload in multipart.unfinished(bucket):
        if upload.started is None or upload.started > latest:
            continue
        try:
            size = sum(part.bytes for part in upload.parts())
        except UploadEndedError:
            continue
        yield Garbage(upload.path, size, upload.started, "an unfinished upload", upload)


def _join(folder: str, name: str) -> str:
    return "/".join(filter(None, (folder, name)))
