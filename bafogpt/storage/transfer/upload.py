"""Send an object: in parts, resumably, verified. See :mod:`bafogpt.storage.transfer`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import obstore
from obstore.exceptions import GenericError

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage import parallel
from bafogpt.storage.bucket import MAX_PARTS, Bucket, ProgressCallback, no_progress
from bafogpt.storage.errors import map_errors
from bafogpt.storage.transfer import multipart
from bafogpt.storage.transfer.bandwidth import Bandwidth
from bafogpt.storage.transfer.checksum import crc32
from bafogpt.storage.transfer.multipart import Buffer, MultipartUpload, Part, UploadEndedError

PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 1
"""Per file: an interruption costs the parts in flight. Several files are sent at a time."""
LOCAL_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Sent:
    """An object that was sent."""

    bytes: int
    digest: str
    """BLAKE3 of the content, computed while it was sent."""
    etag: str
    """:attr:`bafogpt.storage.bucket.ObjectInfo.etag` as long as the object is not written again."""
    resumed: int
    """Bytes that an earlier upload had sent."""
    proof: Literal["checksum", "etag", "read-back"]
    """How it was verified: the server checks checksums (this was tested), its ETag is the content's MD5, or every byte
    was read back."""


class UploadSource(Protocol):
    """Content to send."""

    size: int

    def read(self, start: int, length: int) -> Buffer:
        """Exactly those bytes, or :class:`CorruptError`."""


def send(
    source: Path | UploadSource,
    bucket: Bucket,
    path: str,
    *,
    progress: ProgressCallback = no_progress,
    bandwidth: Bandwidth | None = None,
    unfinished: Sequence[MultipartUpload] | None = None,
) -> Sent:
    """Send a local file, or any other source, as the object ``path`` and verify it.

    An interrupted upload of that object resumes: a part is kept when its size and MD5 match the source's.
    ``unfinished`` are the candidates to resume, if the caller has listed them. Memory holds two parts. Raises
    :class:`CorruptError` when the file shrinks meanwhile, or when the object is not what was sent, and what
    :class:`Bucket` raises.
    """
    if isinstance(source, Path):
        with _LocalFile(source) as file:
            return send(file, bucket, path, progress=progress, bandwidth=bandwidth, unfinished=unfinished)
    meter = _Meter(progress, bandwidth)
    if source.size <= PART_BYTES:
        return _send_whole(source, bucket, path, meter)
    if bucket.address(path)[0].location.scheme == "file":
        return _write_file(source, bucket, path, meter)
    return _send_parts(source, bucket, path, meter, unfinished)


def part_bytes(size: int) -> int:
    """Size of the parts of an object of ``size`` bytes; a resumed upload uses the same."""
    return max(PART_BYTES, -(-size // MAX_PARTS))


def etag_of(file: Path) -> str:
    """The ETag of the file once it was sent to a server whose ETags are MD5s."""
    with _LocalFile(file) as source:
        if source.size <= PART_BYTES:
            return _md5(source.read(0, source.size)).hexdigest()
        length = part_bytes(source.size)
        pieces = (source.read(at, min(length, source.size - at)) for at in range(0, source.size, length))
        return _etag([Part(i, len(piece), _md5(piece).hexdigest()) for i, piece in enumerate(pieces)])


def _send_whole(source: UploadSource, bucket: Bucket, path: str, meter: _Meter) -> Sent:
    data = bytes(source.read(0, source.size))
    meter.wait(len(data))
    bucket.put(path, data)
    meter.moved(len(data))
    info = bucket.info(path)
    verified = (info.bytes, info.etag) == (len(data), _md5(data).hexdigest())
    return _verified(bucket, path, Sent(source.size, digest.of_bytes(data), info.etag, 0, "etag"), verified)


def _write_file(source: UploadSource, bucket: Bucket, path: str, meter: _Meter) -> Sent:
    """To local disk: under a temporary name, then renamed."""
    content = digest.hasher("blake3")
    connection, key = bucket.address(path)
    with map_errors(bucket.url, path):
        try:
            with obstore.open_writer(connection.store, key, max_concurrency=1) as output:
                for start in range(0, source.size, LOCAL_PIECE_BYTES):
                    piece = bytes(source.read(start, min(LOCAL_PIECE_BYTES, source.size - start)))
                    content.update(piece)
                    meter.wait(len(piece))
                    output.write(piece)
                    meter.moved(len(piece))
        except OSError as error:  # the class of all of a writer's errors
            raise GenericError(str(error)) from error
    sent = Sent(source.size, f"blake3:{content.hexdigest()}", bucket.info(path).etag, 0, "etag")
    return _verified(bucket, path, sent, verified=False)


def _send_parts(
    source: UploadSource, bucket: Bucket, path: str, meter: _Meter, unfinished: Sequence[MultipartUpload] | None
) -> Sent:
    content = digest.hasher("blake3")
    parts: list[Part] = []
    resumed = 0
    length = part_bytes(source.size)
    opening = parallel.start(functools.partial(_open_upload, bucket, path, unfinished))  # while the first part is read
    read = _Buffers(source, length).read if isinstance(source, _LocalFile) else source.read
    in_flight: deque[Future[Part]] = deque()
    try:
        for number, start in enumerate(range(0, source.size, length), start=1):
            data = read(start, min(length, source.size - start))
            content.update(data)
            upload, known, checksum = opening.result()
            part = _matching(known[number], data)
            if part is not None:
                parts.append(replace(part, crc32=crc32(data) if checksum else None))
                resumed += len(data)
                meter.moved(len(data))
                continue
            if len(in_flight) == PARTS_IN_FLIGHT:
                parts.append(in_flight.popleft().result())
            in_flight.append(parallel.start(functools.partial(_send_part, upload, number, data, checksum, meter)))
        parts += [each.result() for each in in_flight]
    finally:
        wait([opening])
        wait(in_flight)
    etag = _complete(upload, parts, bucket)
    sent = Sent(source.size, f"blake3:{content.hexdigest()}", etag, resumed, "checksum")
    return _verified(bucket, path, sent, verified=checksum and etag == _etag(parts))


def _open_upload(
    bucket: Bucket, path: str, unfinished: Sequence[MultipartUpload] | None
) -> tuple[MultipartUpload, dict[int, list[Part]], bool]:
    """The upload to resume, or a new one; the parts it has, by number; whether its parts have checksums."""
    checksum = multipart.verifies_checksums(bucket, path)
    for upload in multipart.resumable(bucket, path) if unfinished is None else unfinished:
        if upload.path == path:
            with contextlib.suppress(UploadEndedError):
                known: dict[int, list[Part]] = defaultdict(list)
                for part in upload.parts():
                    known[part.number].append(part)
                return upload, known, checksum
    return multipart.begin(bucket, path, checksum=checksum), defaultdict(list), checksum


def _matching(parts: Sequence[Part], data: Buffer) -> Part | None:
    """The part with the same content."""
    candidates = [part for part in parts if part.bytes == len(data)]
    md5 = _md5(data).hexdigest() if candidates else ""
    return next((part for part in candidates if part.etag == md5), None)


def _send_part(upload: MultipartUpload, number: int, data: Buffer, checksum: bool, meter: _Meter) -> Part:
    part = upload.send(number, data, checksum=checksum, before_write=meter.wait)
    meter.moved(len(data))
    return part


def _complete(upload: MultipartUpload, parts: list[Part], bucket: Bucket) -> str:
    """Create the object. Returns its ETag."""
    try:
        return upload.complete(parts)
    except UploadEndedError:
        with contextlib.suppress(NotFoundError):
            if bucket.info(upload.path).etag == _etag(parts):  # it was completed, and the response was lost
                return _etag(parts)
        raise


def _verified(bucket: Bucket, path: str, sent: Sent, verified: bool) -> Sent:
    """``sent``, after reading the object back unless it is ``verified`` already."""
    if verified:
        return sent
    if digest.of_chunks(bucket.chunks(path)) != sent.digest:
        bucket.delete(path)
        raise CorruptError(f"{bucket.url}/{path}: the data was corrupted in transit", "repeat the command")
    return replace(sent, proof="read-back")


def _etag(parts: list[Part]) -> str:
    """The ETag of an object of these parts on a server whose ETags are MD5s; empty on others."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in sorted(parts, key=lambda part: part.number))
    except ValueError:
        return ""
    return f"{_md5(joined).hexdigest()}-{len(parts)}"


def _md5(data: Buffer) -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


class _Meter:
    """Progress and bandwidth of one transfer."""

    def __init__(self, progress: ProgressCallback, bandwidth: Bandwidth | None) -> None:
        self.moved = progress
        self.wait = bandwidth.take if bandwidth else no_progress


class _LocalFile:
    """A local file, which must not shrink while it is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self._handle, length, start)
        self._require(len(data) == length)
        return data

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer."""
        self._require(os.preadv(self._handle, [buffer], start) == len(buffer))

    def _require(self, is_whole: bool) -> None:
        if not is_whole:
            raise CorruptError(f"{self._path} became shorter while it was sent", "repeat the command")

    def __enter__(self) -> _LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


class _Buffers:
    """Reads a file into two buffers in turn, because new memory for every part costs a quarter of the reading time.

    A result is valid until the second call after it: one part is sent while the next is read.
    """

    def __init__(self, file: _LocalFile, length: int) -> None:
        self._file = file
        # not bytearrays: zeroing those blocks all other threads
        self._buffers = deque(memoryview(mmap.mmap(-1, length)) for _ in range(PARTS_IN_FLIGHT + 1))

    def read(self, start: int, length: int) -> memoryview:
        self._buffers.rotate()
        data = self._buffers[0][:length]
        self._file.read_into(data, start)
        return data
