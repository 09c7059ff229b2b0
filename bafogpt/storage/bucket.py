"""A folder of objects in S3 or on local disk. All other modules read and write stored data through it.

A :class:`Bucket` is thread-safe. It is not fork-safe once it has been used, because its client has threads: open it
after a fork, or spawn.
"""

from __future__ import annotations

import builtins
import contextlib
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
"""Called with the number of bytes moved since the last call."""


def no_progress(count: int) -> None:
    """A :data:`ProgressCallback` that does nothing."""


PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 2  # a slow line moves that many parts within the timeout
MAX_PARTS = 9_000  # S3 takes 10,000


@dataclass(frozen=True)
class ObjectInfo:
    """One object. ``path`` is relative to the bucket that listed it."""

    path: str
    bytes: int
    modified: datetime
    etag: str = ""
    """Changes when the object is written again. On many servers, not on all, the content's MD5."""


class Bucket:
    """A folder of objects: ``s3://NAME[/PREFIX]`` at any endpoint, or ``file:///FOLDER``.

    Every method may raise :class:`NotFoundError` (no such bucket), :class:`~bafogpt.core.errors.AuthError`, and
    :class:`~bafogpt.core.errors.UnreachableError` once retries have gone on for ``s3_timeout_s`` seconds.
    """

    def __init__(self, url: str, connection: Connection, prefix: str) -> None:
        self.url = url
        self._connection = connection
        self._prefix = prefix

    @classmethod
    def open(cls, url: str, settings: Settings | None = None) -> Bucket:
        """The bucket at ``url``; no request is made.

        Raises :class:`~bafogpt.core.errors.ConfigError` for any other URL.
        """
        location = parse(url)
        connection = Connection(location, settings or settings_module.load())
        return cls(url.rstrip("/"), connection, location.prefix)

    def child(self, prefix: str) -> Bucket:
        """The folder ``prefix`` of this bucket, over the same connection."""
        key = self._key(prefix.rstrip("/"))
        return Bucket(f"{self.url}/{prefix.rstrip('/')}", self._connection, key)

    def create(self) -> None:
        """Create the bucket (or the local folder) unless it exists."""
        self._connection.create()

    def check(self) -> None:
        """Make one cheap request, without retries; raises its error."""
        with map_errors(self.url):
            obstore.list_with_delimiter(self._connection.open(retry=False), self._key("check"))

    def get(self, path: str) -> bytes:
        """The whole object. Raises :class:`NotFoundError`."""
        with map_errors(self.url, path):
            return bytes(obstore.get(self._connection.read_store, self._key(path)).bytes())

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Exactly ``length`` bytes from byte ``start``, or :class:`CorruptError` naming the object and the range.

        A read-only view of the client's buffer, not a copy.
        """
        if length == 0:
            return memoryview(b"")
        with map_errors(self.url, path):
            store = self._connection.read_store
            data = memoryview(obstore.get_range(store, self._key(path), start=start, length=length))
        if len(data) != length:
            raise CorruptError(
                f"{self.url}/{path} bytes {start}-{start + length - 1}: {len(data)} of {length} arrived",
                f"bafogpt storage ls {self.url}",
            )
        return data

    def chunks(self, path: str, chunk_bytes: int = 4 << 20) -> Iterator[bytes]:
        """The object in chunks, never all of it in memory."""
        total = 0
        with map_errors(self.url, path):
            answer = obstore.get(self._connection.read_store, self._key(path))
            for chunk in answer.stream(min_chunk_size=chunk_bytes):
                total += len(chunk)
                yield bytes(chunk)
            expected = answer.meta["size"]
        if total != expected:
            raise CorruptError(
                f"{self.url}/{path}: {total} of {expected} bytes arrived", f"bafogpt storage ls {self.url}"
            )

    def put(self, path: str, data: bytes, *, create_only: bool = False) -> None:
        """Write an object, whole or not at all.

        Raises :class:`~bafogpt.core.errors.ConflictError` when it exists and ``create_only`` is set.
        """
        with map_errors(self.url, path):
            obstore.put(
                self._connection.store,
                self._key(path),
                data,
                mode="create" if create_only else "overwrite",
                use_multipart=False,
            )

    def upload(self, path: str, file: Path) -> None:
        """Send a local file, in parts when it is large; some tens of MB of memory for any size."""
        part = max(PART_BYTES, -(-file.stat().st_size // MAX_PARTS))
        with map_errors(self.url, path):
            obstore.put(self._connection.store, self._key(path), file, chunk_size=part, max_concurrency=PARTS_IN_FLIGHT)

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

        Some servers, such as SeaweedFS, still list a folder after its last object was deleted.
        """
        with map_errors(self.url, prefix):
            key = self._key(prefix.rstrip("/"))
            found = obstore.list_with_delimiter(self._connection.store, key or None)
        return sorted(each.rpartition("/")[2] for each in found["common_prefixes"])

    def info(self, path: str) -> ObjectInfo:
        """Size and time of one object. Raises :class:`NotFoundError`."""
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
        """Remove an object, if it exists."""
        with map_errors(self.url, path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._connection.store, self._key(path))

    def delete_tree(self, prefix: str) -> int:
        """Remove every object below the folder ``prefix``. Returns their number."""
        keys = [self._key(info.path) for info in self.list(prefix)]
        if keys:
            with map_errors(self.url, prefix), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._connection.store, keys)
        return len(keys)

    def address(self, path: str) -> tuple[Connection, str]:
        """The connection and the full name of ``path``, for requests that a bucket does not offer."""
        return self._connection, self._key(path)

    def _key(self, path: str) -> str:
        """The full name of ``path``. Raises :class:`UsageError` for a path outside this folder."""
        if not path:
            return self._prefix
        try:
            name = str(files.safe_relative(path))
        except CorruptError:
            raise UsageError(
                f"{path!r} is not a path below {self.url}", "leave out '..', '\\' and double '/'"
            ) from None
        return f"{self._prefix}/{name}" if self._prefix else name


def _info(meta: ObjectMeta, path: str) -> ObjectInfo:
    return ObjectInfo(path, meta["size"], meta["last_modified"], (meta["e_tag"] or "").strip('"'))
