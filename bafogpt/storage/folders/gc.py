"""Looking after what a bucket holds: is every byte right, how much is it, what does nobody need any more.

All of it goes by the manifests: those of model folders, datasets and checkpoints. What no manifest speaks for, such as
a run's records or a folder of somebody's files, is neither verified nor ever removed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.storage.bucket import Bucket, ObjectInfo, ProgressCallback
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.folders import manifest as folder_manifest
from bafogpt.storage.folders.manifest import MANIFEST
from bafogpt.storage.parallel import in_parallel
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.manifest import HASH_CHARS, ITEM_BYTES, TokenManifest
from bafogpt.storage.transfer import multipart
from bafogpt.storage.transfer.multipart import MultipartUpload

log = logging.getLogger(__name__)
LANES = 4
FolderKind = Literal["model", "dataset", "checkpoint"]
_CHECKPOINT = re.compile(r"(?:(?P<folder>.*)/)?step-\d{8,}\.json")
_UPLOAD = re.compile(r"step-\d{8,}/")


@dataclass(frozen=True)
class TrackedObject:
    """One object that a manifest speaks for, and what its content must hash to, span by span.

    ``blocks`` are the digests of consecutive spans of ``block_bytes`` bytes; one block is the whole object.
    """

    path: str
    bytes: int
    algorithm: str
    blocks: tuple[str, ...]
    block_bytes: int


@dataclass(frozen=True)
class ManifestFolder:
    """A folder that has manifests: one of its own, or those of its checkpoints."""

    path: str
    kind: FolderKind
    manifests: tuple[str, ...]
    items: tuple[TrackedObject, ...]
    problems: tuple[str, ...] = ()
    """Manifests that cannot be read; while there are any, nothing below is removed."""
    unfinished: bool = False


@dataclass(frozen=True)
class BucketContents:
    """A bucket (or a folder of one) and what its manifests say of it."""

    bucket: Bucket
    objects: Mapping[str, ObjectInfo]
    folders: tuple[ManifestFolder, ...]

    def folder_of(self, path: str) -> ManifestFolder | None:
        """The folder that an object belongs to: the deepest one above it."""
        above = [each for each in self.folders if not each.path or path.startswith(f"{each.path}/")]
        return max(above, key=lambda each: len(each.path), default=None)


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs: an object, or an upload that was never completed."""

    path: str
    bytes: int
    modified: datetime
    reason: str
    upload: MultipartUpload | None = field(default=None, repr=False)


def scan(bucket: Bucket) -> BucketContents:
    """Everything below ``bucket``, each folder with what its manifests name."""
    objects = {info.path: info for info in bucket.list()}
    folders: list[ManifestFolder] = []
    steps: dict[str, list[str]] = {}
    for path in objects:
        if path == MANIFEST or path.endswith(f"/{MANIFEST}"):
            folder = _with_manifest(bucket, path, objects)
            if folder is not None:
                folders.append(folder)
        elif match := _CHECKPOINT.fullmatch(path):
            steps.setdefault(match["folder"] or "", []).append(path)
    folders += [_checkpoints(bucket, folder, paths) for folder, paths in steps.items()]
    return BucketContents(bucket, objects, tuple(sorted(folders, key=lambda each: each.path)))


def verify(contents: BucketContents, progress: ProgressCallback = lambda count: None) -> list[str]:
    """What is wrong, every byte read: manifests that cannot be read, objects that are missing or not what they were.

    Raises :class:`NotFoundError` when no manifest speaks for anything.
    """
    if not contents.folders:
        raise NotFoundError(
            f"nothing below {contents.bucket.url} has a manifest to verify by",
            f"bafogpt storage du {contents.bucket.url}",
        )
    problems = [problem for folder in contents.folders for problem in folder.problems]
    for folder in contents.folders:
        if folder.unfinished:
            problems.append(f"{_where(contents, folder.path)} is unfinished: what was copying to it was cut off")
    items = {item.path: item for folder in contents.folders for item in folder.items}

    def check(item: TrackedObject, go_on: Callable[[], None]) -> list[str]:
        go_on()
        found = contents.objects.get(item.path)
        if found is None:
            return [f"{_where(contents, item.path)} is missing"]
        if found.bytes != item.bytes:
            return [f"{_where(contents, item.path)} has {found.bytes} bytes, not {item.bytes}"]
        return [
            f"{_where(contents, item.path)}{span} is not what was written"
            for span in _wrong_spans(contents.bucket, item, progress)
        ]

    for found in in_parallel(check, list(items.values()), LANES):
        problems += found
    return problems


def bytes_to_verify(contents: BucketContents) -> int:
    """How many bytes :func:`verify` reads."""
    paths = {item.path for folder in contents.folders for item in folder.items}
    return sum(contents.objects[path].bytes for path in paths if path in contents.objects)


def garbage(contents: BucketContents, older_than: timedelta, now: datetime) -> list[Garbage]:
    """What no manifest names in folders that have manifests, and uploads that nobody goes on with.

    Only what is older than ``older_than`` by the server's own times. Where a manifest cannot be read nothing is
    garbage, for it may be named there.
    """
    latest = now - older_than
    named = {item.path for folder in contents.folders for item in folder.items}
    named |= {path for folder in contents.folders for path in folder.manifests}
    found = []
    for path, info in contents.objects.items():
        folder = contents.folder_of(path)
        if folder is None or path in named or info.modified > latest:
            continue
        if folder.problems:
            log.warning("%s is kept: a manifest of its folder cannot be read", path)
        elif _can_be_removed(folder, path):
            found.append(Garbage(path, info.bytes, info.modified, f"no manifest of the {folder.kind} names it"))
    return found + list(_dead_uploads(contents.bucket, latest))


def remove(bucket: Bucket, what: list[Garbage]) -> None:
    """Delete the objects and give up the uploads."""

    def one(each: Garbage, check: Callable[[], None]) -> None:
        check()
        if each.upload is not None:
            each.upload.abort()
        else:
            bucket.delete(each.path)

    in_parallel(one, what, LANES)


def usage(bucket: Bucket, depth: int = 1) -> list[tuple[str, int, int]]:
    """(folder, objects, bytes) of each folder ``depth`` levels down; objects above that count to their own level."""
    if depth < 1:
        raise UsageError(f"--depth {depth}: at least 1", "--depth 1")
    sums: dict[str, tuple[int, int]] = {}
    for info in bucket.list():
        parts = info.path.split("/")[:-1][:depth]
        key = "/".join(parts)
        count, size = sums.get(key, (0, 0))
        sums[key] = (count + 1, size + info.bytes)
    return [(key, *sums[key]) for key in sorted(sums)]


def _with_manifest(bucket: Bucket, path: str, objects: Mapping[str, ObjectInfo]) -> ManifestFolder | None:
    """The folder whose ``manifest.json`` this is; ``None`` for a manifest of somebody else's."""
    folder = path.rpartition("/")[0]
    where = f"{bucket.url}/{path}"
    data = bucket.get(path)
    form = folder_manifest.format_of(data)
    kind: FolderKind = "dataset" if form.startswith("bafogpt.tokens/") else "model"
    if not form.startswith("bafogpt."):
        return None
    try:
        if kind == "dataset":
            tokens = manifests.from_json(data, where)
            items = list(_items_of_tokens(tokens, folder))
            tokenizer = _join(folder, "tokenizer/tokenizer.json")
            if tokenizer in objects:  # one that is known by its name alone has no file
                items.append(_whole(tokenizer, objects[tokenizer].bytes, tokens.tokenizer.digest))
            return ManifestFolder(folder, kind, (path,), tuple(items))
        manifest = folder_manifest.from_json(data, where)
    except CorruptError as error:
        return ManifestFolder(folder, kind, (path,), (), (error.message,))
    files = tuple(_whole(_join(folder, each.name), each.bytes, each.digest) for each in manifest.files)
    return ManifestFolder(folder, kind, (path,), files, unfinished=manifest.state != "complete")


def _checkpoints(bucket: Bucket, folder: str, paths: list[str]) -> ManifestFolder:
    items, problems = [], []
    for path in paths:
        try:
            checkpoint = Checkpoint.from_json(bucket.get(path), f"{bucket.url}/{path}")
        except CorruptError as error:
            problems.append(error.message)
            continue
        items += [_whole(_join(folder, file.object), file.bytes, file.digest) for file in checkpoint.files]
    return ManifestFolder(folder, "checkpoint", tuple(paths), tuple(items), tuple(problems))


def _items_of_tokens(tokens: TokenManifest, folder: str) -> Iterator[TrackedObject]:
    for split in tokens.splits.values():
        for shard in split.shards:
            hashes = tuple(shard.blocks[i : i + HASH_CHARS] for i in range(0, len(shard.blocks), HASH_CHARS))
            size = shard.tokens * ITEM_BYTES[tokens.dtype]
            yield TrackedObject(_join(folder, shard.object), size, "xxh3", hashes, tokens.block_bytes)
            yield _whole(_join(folder, shard.docs_object), 8 * shard.documents, shard.docs_digest)


def _whole(path: str, size: int, content: str) -> TrackedObject:
    algorithm, _, value = content.partition(":")
    return TrackedObject(path, size, algorithm, (value,), max(size, 1))


def _wrong_spans(bucket: Bucket, item: TrackedObject, progress: ProgressCallback) -> list[str]:
    """The blocks of an object that do not match, as ``" bytes 0-99"``; of an object of one block just ``""``."""
    wrong: list[str] = []
    state, filled, number = digest.hasher(item.algorithm), 0, 0

    def close() -> None:
        nonlocal state, filled, number
        if number >= len(item.blocks) or state.hexdigest() != item.blocks[number]:
            start = number * item.block_bytes
            wrong.append(f" bytes {start}-{start + filled - 1}" if len(item.blocks) > 1 else "")
        state, filled, number = digest.hasher(item.algorithm), 0, number + 1

    try:
        for chunk in bucket.chunks(item.path):
            progress(len(chunk))
            while chunk:
                piece = chunk[: item.block_bytes - filled]
                chunk = chunk[len(piece) :]
                state.update(piece)
                filled += len(piece)
                if filled == item.block_bytes:
                    close()
        if filled or number < len(item.blocks):
            close()
    except (CorruptError, NotFoundError):
        return [""]
    return wrong


def _can_be_removed(folder: ManifestFolder, path: str) -> bool:
    """Of a checkpoints' folder only what uploads have left; of the others whatever the manifest does not name."""
    if folder.kind != "checkpoint":
        return True
    return _UPLOAD.match(path[len(folder.path) :].lstrip("/")) is not None


def _dead_uploads(bucket: Bucket, latest: datetime) -> Iterator[Garbage]:
    """Uploads in parts that began before ``latest``."""
    for upload in multipart.unfinished(bucket):
        if upload.started is None or upload.started > latest:
            continue
        try:
            parts = upload.parts()
        except NotFoundError:  # ended just now
            continue
        yield Garbage(upload.path, sum(part.bytes for part in parts), upload.started, "an unfinished upload", upload)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _where(contents: BucketContents, path: str) -> str:
    return f"{contents.bucket.url}/{path}" if path else contents.bucket.url


def require_sound(contents: BucketContents, problems: list[str]) -> None:
    """Raise :class:`StorageError` that names the first problem, if there is one."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise StorageError(
            f"{problems[0]}{more}", f"bafogpt storage pull or push it anew, then verify {contents.bucket.url}"
        )
