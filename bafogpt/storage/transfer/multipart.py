"""Multipart uploads that another process can resume: begin, find, send a part, complete, abort.

obstore does not expose the ids of its uploads, so these requests go through boto3. Each is retried while the server
cannot be reached, for ``s3_timeout_s`` seconds since the first failure.
"""

from __future__ import annotations

import base64
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bafogpt.core.errors import AuthError, CorruptError, NotFoundError, StorageError, UnreachableError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.errors import RETRY_HINT, boto3_error
from bafogpt.storage.s3_client import Connection
from bafogpt.storage.transfer.checksum import crc32

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 3.0
CHUNK_BYTES = 1 << 20
PART_ATTEMPTS = 3
_probing = threading.Lock()

Buffer = bytes | memoryview
BeforeWrite = Callable[[int], None]
"""Called with a number of bytes before they are sent; it may wait."""


class UploadEndedError(UnreachableError):
    """The upload was completed or aborted, perhaps by another process. A new one of the same content may begin."""


@dataclass(frozen=True)
class Part:
    """A part that the server has. ``etag`` is the MD5 of its content on most servers."""

    number: int
    bytes: int
    etag: str
    crc32: int | None = None
    """The checksum sent with it; ``None`` where the server ignores checksums."""


class MultipartUpload:
    """An unfinished upload of one object, which does not exist before :meth:`complete`."""

    def __init__(self, bucket: Bucket, path: str, upload_id: str, started: datetime | None = None) -> None:
        self.path = path
        self.started = started
        """By the server's clock; ``None`` for an upload begun by this process."""
        self._where = f"{bucket.url}/{path}"
        self._connection, key = bucket.address(path)
        self._names = {"Bucket": self._connection.location.store, "Key": key, "UploadId": upload_id}

    def parts(self) -> list[Part]:
        """The complete parts, by number. A part that was sent twice may be listed twice."""
        found: list[Part] = []
        marker = 0
        while True:
            page = self._request("list_parts", PartNumberMarker=marker)
            for each in page.get("Parts", ()):
                found.append(Part(each["PartNumber"], each["Size"], each["ETag"].strip('"')))
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda part: part.number)
            marker = page["NextPartNumberMarker"]

    def send(self, number: int, data: Buffer, *, checksum: bool, before_write: BeforeWrite | None = None) -> Part:
        """Send one part; the first number is 1.

        With ``checksum`` the server is given the content's CRC32. A part that it refuses is sent again, because a bit
        may have flipped in transit, and then raises :class:`CorruptError`.
        """
        value = crc32(data) if checksum else None

        def arguments() -> dict[str, Any]:
            body = _Body(data, before_write)
            return {"PartNumber": number, "Body": body, "ContentLength": len(data), **_checksum(value)}

        for left in reversed(range(PART_ATTEMPTS)):
            try:
                answer = self._request("upload_part", arguments)
                break
            except CorruptError:
                log.warning("%s: part %d did not arrive as it was sent", self._where, number)
                if not left:
                    raise
        return Part(number, len(data), answer["ETag"].strip('"'), value)

    def complete(self, parts: list[Part]) -> str:
        """Create the object from ``parts``, by number. Returns its ETag.

        The server refuses when it has other content for one of them. Raises :class:`UploadEndedError` when the upload
        has ended, perhaps by this very request, whose response was lost.
        """
        ordered = sorted(parts, key=lambda part: part.number)
        listed = [{"PartNumber": each.number, "ETag": f'"{each.etag}"', **_checksum(each.crc32)} for each in ordered]
        etag: str = self._request("complete_multipart_upload", MultipartUpload={"Parts": listed})["ETag"]
        return etag.strip('"')

    def abort(self) -> None:
        """Abort the upload; the server removes its parts. Does nothing if it has ended already."""
        try:
            self._request("abort_multipart_upload")
        except UploadEndedError:
            return

    def _request(self, operation: str, arguments: Callable[[], dict[str, Any]] = dict, **others: Any) -> dict[str, Any]:
        return _request(self._connection, operation, self._where, lambda: {**self._names, **arguments(), **others})


def begin(bucket: Bucket, path: str, *, checksum: bool) -> MultipartUpload:
    """A new upload of the object ``path``, whose parts have a ``checksum`` or not."""
    connection, key = bucket.address(path)
    names = {"Bucket": connection.location.store, "Key": key}
    if checksum:
        names["ChecksumAlgorithm"] = "CRC32"
    answer = _request(connection, "create_multipart_upload", f"{bucket.url}/{path}", functools.partial(dict, names))
    return MultipartUpload(bucket, path, answer["UploadId"])


def unfinished(bucket: Bucket, prefix: str = "") -> list[MultipartUpload]:
    """The uploads, by any program, of objects below the folder ``prefix`` or of that name, newest first.

    There are none on local disk.
    """
    connection, key = bucket.address(prefix.rstrip("/"))
    if connection.location.scheme != "s3":
        return []
    cut = len(bucket.address("")[1])
    found = []
    for each in _list_uploads(connection, key, f"{bucket.url}/{prefix}"):
        if not key or each["Key"] == key or each["Key"].startswith(f"{key}/"):
            path = each["Key"][cut:].lstrip("/")
            found.append(MultipartUpload(bucket, path, each["UploadId"], each.get("Initiated")))
    return sorted(found, key=lambda upload: upload.started.timestamp() if upload.started else 0.0, reverse=True)


def resumable(bucket: Bucket, prefix: str) -> list[MultipartUpload]:
    """:func:`unfinished`; empty where the server or a policy does not allow to list uploads."""
    try:
        return unfinished(bucket, prefix)
    except UnreachableError:
        raise
    except (AuthError, StorageError) as error:
        log.info("unfinished uploads cannot be listed: %s", error.message)
        return []


def verifies_checksums(bucket: Bucket, path: str) -> bool:
    """Whether this server refuses content that does not match its checksum; tested once per connection.

    Many servers accept anything. The test sends a part of one byte with the right checksum, then one with a wrong
    checksum, of an object ``path`` that is never created.
    """
    connection = bucket.address(path)[0]
    with _probing:
        if connection.verifies_checksums is None:
            connection.verifies_checksums = _refuses_wrong_checksum(bucket, path)
            log.debug("%s verifies checksums: %s", bucket.url, connection.verifies_checksums)
        return connection.verifies_checksums


def _refuses_wrong_checksum(bucket: Bucket, path: str) -> bool:
    def accepts(request: Callable[[], object]) -> bool:
        try:
            request()
        except UnreachableError:
            raise
        except StorageError:
            return False
        return True

    uploads: list[MultipartUpload] = []
    if not accepts(lambda: uploads.append(begin(bucket, path, checksum=True))):
        return False
    (upload,) = uploads
    send = functools.partial(upload._request, "upload_part", PartNumber=1, Body=b"x")
    try:
        right, wrong = (functools.partial(send, **_checksum(crc32(data))) for data in (b"x", b"y"))
        return accepts(right) and not accepts(wrong)
    finally:
        upload.abort()


def _checksum(value: int | None) -> dict[str, Any]:
    """A CRC32 as an argument of requests."""
    return {} if value is None else {"ChecksumCRC32": base64.b64encode(value.to_bytes(4, "big")).decode()}


def _list_uploads(connection: Connection, key: str, where: str) -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {"Bucket": connection.location.store, "Prefix": key}
    while True:
        page = _request(connection, "list_multipart_uploads", where, functools.partial(dict, names))
        yield from page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return
        names |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}


def _request(
    connection: Connection, operation: str, where: str, arguments: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Make a request, and retry while the server cannot be reached."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline: float | None = None
    wait = FIRST_WAIT_S
    while True:
        try:
            answer: dict[str, Any] = getattr(connection.bulk_client, operation)(**arguments())
            return answer
        except (BotoCoreError, ClientError) as error:
            problem = boto3_error(error, where)
            if isinstance(problem, NotFoundError) and "NoSuchUpload" in problem.message:
                raise UploadEndedError(f"{where}: another process ended this upload", RETRY_HINT) from error
            now = time.monotonic()
            deadline = deadline or now + connection.settings.s3_timeout_s
            if not isinstance(problem, UnreachableError) or now + wait > deadline:
                raise problem from error
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


class _Body:
    """A request's body, read in chunks without copying. Python limits the time to send one chunk, and a whole part
    on a slow line would take longer."""

    def __init__(self, data: Buffer, before_write: BeforeWrite | None) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._before_write = before_write

    def read(self, size: int = -1) -> memoryview:
        end = len(self._data) if size < 0 else self._position + max(size, CHUNK_BYTES)
        chunk = self._data[self._position : end]
        self._position += len(chunk)
        if self._before_write is not None and chunk:
            self._before_write(len(chunk))
        return chunk

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position
