"""An upload in parts that another process can go on with: begin, find, send a part, complete, abort.

obstore keeps the names of its uploads to itself, so here boto3 speaks to S3. Every request is tried again while the
server cannot be reached, for ``s3_timeout_s`` seconds since it last could.
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
from bafogpt.storage.errors import RETRY_HINT, request_failure
from bafogpt.storage.s3_client import Connection
from bafogpt.storage.transfer.checksum import crc32

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 3.0
CHUNK_BYTES = 1 << 20
TRIES_OF_A_PART = 3
_probing = threading.Lock()

Buffer = bytes | memoryview
Gate = Callable[[int], None]
"""Called with a number of bytes before they go out; it may wait."""


class UploadEndedError(UnreachableError):
    """Somebody completed or aborted the upload. A new one of the same content may follow."""


@dataclass(frozen=True)
class Part:
    """A part that the server has. ``etag`` is the MD5 of what it received, at most servers."""

    number: int
    bytes: int
    etag: str
    crc32: int | None = None
    """The checksum that went with it; ``None`` where servers take no notice of them."""


class MultipartUpload:
    """An unfinished upload of one object. No reader sees any of it before :meth:`complete`."""

    def __init__(self, bucket: Bucket, path: str, upload_id: str, started: datetime | None = None) -> None:
        self.path = path
        self.started = started
        """When it began, by the server's clock; ``None`` for one begun here."""
        self._where = f"{bucket.url}/{path}"
        self._connection, key = bucket.address(path)
        self._names = {"Bucket": self._connection.location.store, "Key": key, "UploadId": upload_id}

    def parts(self) -> list[Part]:
        """The complete parts, by number. A part that was sent again may be listed twice."""
        found: list[Part] = []
        marker = 0
        while True:
            answer = self._ask("list_parts", PartNumberMarker=marker)
            for each in answer.get("Parts", ()):
                found.append(Part(each["PartNumber"], each["Size"], each["ETag"].strip('"')))
            if not answer.get("IsTruncated"):
                return sorted(found, key=lambda part: part.number)
            marker = answer["NextPartNumberMarker"]

    def send(self, number: int, data: Buffer, *, checksum: bool, gate: Gate | None = None) -> Part:
        """Send one part; numbers begin with 1.

        With ``checksum`` the server is told the content's CRC32; what it refuses is sent again, for a bit may have
        flipped on its way, and then raises :class:`CorruptError`.
        """
        checked = crc32(data) if checksum else None

        def arguments() -> dict[str, Any]:
            return {"PartNumber": number, "Body": _Body(data, gate), "ContentLength": len(data), **_named(checked)}

        for left in reversed(range(TRIES_OF_A_PART)):
            try:
                answer = self._ask("upload_part", arguments)
                break
            except CorruptError:
                log.warning("%s: part %d did not arrive as it was sent", self._where, number)
                if not left:
                    raise
        return Part(number, len(data), answer["ETag"].strip('"'), checked)

    def complete(self, parts: list[Part]) -> str:
        """Make the object out of ``parts``, in the order of their numbers; its ETag.

        The server refuses when it has other content for one of them. Raises :class:`UploadEndedError` when the upload
        is no more, perhaps by this very request, whose answer was lost.
        """
        ordered = sorted(parts, key=lambda part: part.number)
        listed = [{"PartNumber": each.number, "ETag": f'"{each.etag}"', **_named(each.crc32)} for each in ordered]
        etag: str = self._ask("complete_multipart_upload", MultipartUpload={"Parts": listed})["ETag"]
        return etag.strip('"')

    def abort(self) -> None:
        """Give it up; the server drops its parts. One that is no more is fine."""
        try:
            self._ask("abort_multipart_upload")
        except UploadEndedError:
            return

    def _ask(self, operation: str, arguments: Callable[[], dict[str, Any]] = dict, **others: Any) -> dict[str, Any]:
        return _ask(self._connection, operation, self._where, lambda: {**self._names, **arguments(), **others})


def begin(bucket: Bucket, path: str, *, checksum: bool) -> MultipartUpload:
    """A new upload of the object ``path``, whose parts go with a ``checksum`` or without."""
    connection, key = bucket.address(path)
    names = {"Bucket": connection.location.store, "Key": key}
    if checksum:
        names["ChecksumAlgorithm"] = "CRC32"
    where = f"{bucket.url}/{path}"
    answer = _ask(connection, "create_multipart_upload", where, functools.partial(dict, names))
    return MultipartUpload(bucket, path, answer["UploadId"])


def unfinished(bucket: Bucket, prefix: str = "") -> list[MultipartUpload]:
    """Uploads, anybody's, of objects below the folder ``prefix`` or of that very name, newest first.

    Those that another program began are among them. There are none on local disk.
    """
    connection, key = bucket.address(prefix.rstrip("/"))
    if connection.location.scheme != "s3":
        return []
    cut = len(bucket.address("")[1])
    found = []
    for each in _listed(connection, key, f"{bucket.url}/{prefix}"):
        if not key or each["Key"] == key or each["Key"].startswith(f"{key}/"):
            path = each["Key"][cut:].lstrip("/")
            found.append(MultipartUpload(bucket, path, each["UploadId"], each.get("Initiated")))
    return sorted(found, key=lambda upload: upload.started.timestamp() if upload.started else 0.0, reverse=True)


def to_resume(bucket: Bucket, prefix: str) -> list[MultipartUpload]:
    """Those of :func:`unfinished` where the server tells; a server, or a policy, that does not is no obstacle."""
    try:
        return unfinished(bucket, prefix)
    except UnreachableError:
        raise
    except (AuthError, StorageError) as error:
        log.info("unfinished uploads are not looked for: %s", error.message)
        return []


def verifies_checksums(bucket: Bucket, path: str) -> bool:
    """Whether this server has been seen to refuse content that does not match its checksum.

    Many accept anything. So it is given a part of one byte with the right checksum, then one with a wrong one, of an
    object ``path`` that never comes to be. Asked once per connection.
    """
    connection = bucket.address(path)[0]
    with _probing:
        if connection.verifies_checksums is None:
            connection.verifies_checksums = _refuses_a_wrong_one(bucket, path)
            log.debug("%s verifies checksums: %s", bucket.url, connection.verifies_checksums)
        return connection.verifies_checksums


def _refuses_a_wrong_one(bucket: Bucket, path: str) -> bool:
    try:
        upload = begin(bucket, path, checksum=True)
    except UnreachableError:
        raise
    except StorageError:  # it knows none
        return False

    def accepts(checksum: int) -> bool:
        try:
            upload._ask("upload_part", PartNumber=1, Body=b"x", **_named(checksum))
        except UnreachableError:
            raise
        except StorageError:
            return False
        return True

    try:
        return accepts(crc32(b"x")) and not accepts(crc32(b"y"))
    finally:
        upload.abort()


def _named(checksum: int | None) -> dict[str, Any]:
    """The checksum as requests carry it."""
    return {} if checksum is None else {"ChecksumCRC32": base64.b64encode(checksum.to_bytes(4, "big")).decode()}


def _listed(connection: Connection, key: str, where: str) -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {"Bucket": connection.location.store, "Prefix": key}
    while True:
        answer = _ask(connection, "list_multipart_uploads", where, functools.partial(dict, names))
        yield from answer.get("Uploads", ())
        if not answer.get("IsTruncated"):
            return
        names |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


def _ask(connection: Connection, operation: str, where: str, arguments: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One request, again and again while the server cannot be reached."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline: float | None = None
    wait = FIRST_WAIT_S
    while True:
        try:
            answer: dict[str, Any] = getattr(connection.bulk_client, operation)(**arguments())
            return answer
        except (BotoCoreError, ClientError) as error:
            problem = request_failure(error, where)
            if isinstance(problem, NotFoundError) and "NoSuchUpload" in problem.message:
                raise UploadEndedError(f"{where}: somebody ended this upload", RETRY_HINT) from error
            now = time.monotonic()
            deadline = deadline or now + connection.settings.s3_timeout_s
            if not isinstance(problem, UnreachableError) or now + wait > deadline:
                raise problem from error
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


class _Body:
    """A request's body, handed out in pieces that are no copies. Python bounds the time that sending one piece may
    take, and a whole part on a slow line would take longer than that."""

    def __init__(self, data: Buffer, gate: Gate | None) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._gate = gate

    def read(self, size: int = -1) -> memoryview:
        end = len(self._data) if size < 0 else self._position + max(size, CHUNK_BYTES)
        piece = self._data[self._position : end]
        self._position += len(piece)
        if self._gate is not None and piece:
            self._gate(len(piece))
        return piece

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position
