"""A folder of objects, wherever it is: the only way by which the rest of bafogpt reaches stored bytes.

A :class:`Bucket` is not fork-safe once it has been used (its client has threads): open it after a fork, or spawn.
It may be used from several threads.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from bafogpt.core import files
from bafogpt.core import settings as settings_module
from bafogpt.core.errors import CorruptError, NotFoundError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.storage.errors import map_errors
from bafogpt.storage.s3_client import Connection, boto3_client, parse

if TYPE_CHECKING:
    from obstore import ObjectMeta

__all__ = ["Bucket", "ObjectInfo", "boto3_client"]

ProgressCallback = Callable[[int], None]
"""Called with the number of bytes that have been moved since the last call."""

PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 2  # a slow line must move this many parts within the timeout
MAX_PARTS = 9_000  # S3 takes 10,000
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ObjectInfo:
    """One object. ``path`` is relative to the bucket that was asked."""

    path: str
    bytes: int
    modified: datetime
    etag: str = ""
    """What the server calls this content: new content, new name. Often, not always, it is the content's MD5."""


class Bucket:
    """A folder of objects: ``s3://NAME[/PREFIX]`` at any endpoint, or ``file:///FOLDER``.

    Every method may raise :class:`NotFoundError` (no such bucket), :class:`AuthError`, and
    :class:`UnreachableError` once retries have gone on for ``s3_timeout_s`` seconds.
    """

    def __init__(self, url: str, connection: Connection, prefix: str) -> None:
        self.url = url
        self._connection = connection
        self._prefix = prefix

    @classmethod
    def open(cls, url: str, settings: Settings | None = None) -> Bucket:
        """The bucket at ``url``; nothing is sent yet. Raises :class:`ConfigError` for what is not a bucket's URL."""
        location = parse(url)
        connection = Connection(location, settings or settings_module.load())
        return cls(url.rstrip("/"), connection, location.prefix)

    def child(self, prefix: str) -> Bucket:
        """The folder ``prefix`` of this bucket, over the same connection."""
        key = self._key(prefix.rstrip("/"))
        return Bucket(f"{self.url}/{prefix.rstrip('/')}", self._connection, key)

    def create(self) -> None:
        """Make the bucket (or the local folder) unless it exists."""
        self._connection.create()

    def check(self) -> None:
        """One cheap request, without retries; raises what is wrong now."""
        with map_errors(self.url):
            obstore.list_with_delimiter(self._connection.open(retry=False), self._key("is-it-there"))

    def get(self, path: str) -> bytes:
        """The whole object. Raises :class:`NotFoundError` when there is none."""
        with map_errors(self.url, path):
            return bytes(obstore.get(self._connection.reading, self._key(path)).bytes())

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Exactly ``length`` bytes from byte ``start``, or :class:`CorruptError` naming the object and the range.

        Read-only, and not a copy: the client's own buffer lives as long as the view does.
        """
        if length == 0:
            return memoryview(b"")
        with map_errors(self.url, path):
            store = self._connection.reading
            data = memoryview(obstore.get_range(store, self._key(path), start=start, length=length))
        if len(data) != length:
            raise CorruptError(
                f"{self.url}/{path} bytes {start}-{start + length - 1}: {len(data)} of {length} are there",
                f"bafogpt storage ls {self.url}",
            )
        return data

    def chunks(self, path: str, chunk_bytes: int = 4 * READ_BYTES) -> Iterator[bytes]:
        """The object in pieces, never all of it in memory."""
        total = 0
        with map_errors(self.url, path):
            answer = obstore.get(self._connection.reading, self._key(path))
            for chunk in answer.stream(min_chunk_size=chunk_bytes):
                total += len(chunk)
                yield bytes(chunk)
            expected = answer.meta["size"]
        if total != expected:
            raise CorruptError(f"{self.url}/{path}: {total} of {expected} bytes came", f"bafogpt storage ls {self.url}")

    def put(self, path: str, data: bytes, *, create_only: bool = False) -> None:
        """Write an object, whole or not at all. With ``create_only``, :class:`ConflictError` when it exists."""
        with map_errors(self.url, path):
            obstore.put(
                self._connection.store,
                self._key(path),
                data,
                mode="create" if create_only else "overwrite",
                use_multipart=False,
            )

    def upload(self, path: str, file: Path, progress: ProgressCallback | None = None) -> None:
        """Send a local file, in parts when it is big; some tens of MB of memory whatever its size."""
        size = file.stat().st_size
        if size <= PART_BYTES:
            self.put(path, file.read_bytes())
            if progress:
                progress(size)
            return
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        with map_errors(self.url, path):
            obstore.put(
                self._connection.store,
                self._key(path),
                _pieces(file, progress),
                chunk_size=part,
                max_concurrency=PARTS_IN_FLIGHT,
            )

    def download(self, path: str, file: Path, progress: ProgressCallback | None = None) -> None:
        """Fetch an object into a local file, which appears whole or not at all; bounded memory."""
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as output, files.disk_full_named(file.parent):
                for chunk in self.chunks(path):
                    output.write(chunk)
                    if progress:
                        progress(len(chunk))
                output.flush()
                os.fsync(output.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        files.sync_folder(file.parent)

    def list(self, prefix: str = "") -> builtins.list[ObjectInfo]:
        """Every object below the folder ``prefix``, sorted by path."""
        with map_errors(self.url, prefix):
            key = self._key(prefix.rstrip("/"))
            found = obstore.list(self._connection.store, key or None).collect()
        cut = len(self._prefix) + 1 if self._prefix else 0
        infos = [_info(meta, meta["path"][cut:]) for meta in found]
        return sorted(infos, key=lambda info: info.path)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Names of the folders directly below ``prefix``, sorted.

        Some servers (SeaweedFS is one) go on naming a folder whose last object was deleted.
        """
        with map_errors(self.url, prefix):
            key = self._key(prefix.rstrip("/"))
            found = obstore.list_with_delimiter(self._connection.store, key or None)
        return sorted(each.rpartition("/")[2] for each in found["common_prefixes"])

    def info(self, path: str) -> ObjectInfo:
        """Size and time of one object. Raises :class:`NotFoundError` when there is none."""
        with map_errors(self.url, path):
            meta = obstore.head(self._connection.store, self._key(path))
        return _info(meta, path)

    def exists(self, path: str) -> bool:
        """Whether there is an object of that name."""
        try:
            self.info(path)
        except NotFoundError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""
        with map_errors(self.url, path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._connection.store, self._key(path))

    def delete_tree(self, prefix: str) -> int:
        """Remove every object below the folder ``prefix``; how many there were."""
        keys = [self._key(info.path) for info in self.list(prefix)]
        if keys:
            with map_errors(self.url, prefix), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._connection.store, keys)
        return len(keys)

    def address(self, path: str) -> tuple[Connection, str]:
        """The connection and the full name of ``path``, for what needs more of S3 than a bucket offers."""
        return self._connection, self._key(path)

    def _key(self, path: str) -> str:
        """The full name of ``path``, which must stay within this folder."""
        if not path:
            return self._prefix
        try:
            name = str(files.safe_relative(path))
        except CorruptError:
            raise UsageError(
                f"{path!r} is not a name below {self.url}", "leave out '..', '\\' and double '/'"
            ) from None
        return f"{self._prefix}/{name}" if self._prefix else name


def _info(meta: ObjectMeta, path: str) -> ObjectInfo:
    return ObjectInfo(path, meta["size"], meta["last_modified"], (meta["e_tag"] or "").strip('"'))


def _pieces(file: Path, progress: ProgressCallback | None) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(READ_BYTES):
            yield piece
            if progress:
                progress(len(piece))
