"""Sending an object: in parts, resumable, and known to have arrived. See ``transfer``."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import obstore
from obstore.exceptions import GenericError

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage.bucket import MAX_PARTS, Bucket, ProgressCallback
from bafogpt.storage.errors import map_errors
from bafogpt.storage.parallel import Call
from bafogpt.storage.transfer import multipart
from bafogpt.storage.transfer.bandwidth import Bandwidth
from bafogpt.storage.transfer.checksum import crc32
from bafogpt.storage.transfer.multipart import Buffer, MultipartUpload, Part, UploadEndedError

PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 1
"""Of one file: what an interruption costs is what was on its way. Files go side by side."""
LOCAL_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Sent:
    """What is in the bucket now."""

    bytes: int
    digest: str
    """BLAKE3 of the content, taken while it went out."""
    etag: str
    """What the server calls it; :attr:`ObjectInfo.etag` says the same until it is written again."""
    resumed: int
    """Bytes that an earlier try had sent."""
    proof: Literal["checksum", "etag", "read-back"]
    """How it is known that the content arrived: the server refuses what does not match its checksum, and was seen to;
    the server's own MD5 of it; or every byte was read again."""


class UploadSource(Protocol):
    """Where the bytes come from."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Exactly those bytes, or :class:`CorruptError`."""


def send(
    file: Path,
    bucket: Bucket,
    path: str,
    *,
    progress: ProgressCallback | None = None,
    bandwidth: Bandwidth | None = None,
    unfinished: Sequence[MultipartUpload] | None = None,
) -> Sent:
    """Send a local file as the object ``path`` and make sure that it arrived.

    An upload of that object that was cut off goes on after its last complete part; a part is believed when its size
    and its MD5 are those of the file's; ``unfinished`` are the uploads among which it is looked for, where the caller
    has listed them. One part is in memory on its way and one is being read. Raises
    :class:`CorruptError` when the file changes meanwhile, or when what arrived is not what was sent, and what
    :class:`Bucket` raises.
    """
    with _File(file) as source:
        return deliver(source, bucket, path, progress=progress, bandwidth=bandwidth, unfinished=unfinished)


def copy(
    source: Bucket,
    source_path: str,
    target: Bucket,
    target_path: str,
    *,
    size: int,
    progress: ProgressCallback | None = None,
    bandwidth: Bandwidth | None = None,
) -> str:
    """Copy an object of ``size`` bytes from one bucket to another through memory, two parts of it at a time.

    The BLAKE3 digest of what passed; it arrived, as after :func:`send`. A copy that was cut off reads its source from
    the beginning and sends only what is missing.
    """
    remote = _Object(source, source_path, size)
    return deliver(remote, target, target_path, progress=progress, bandwidth=bandwidth).digest


def deliver(
    source: UploadSource,
    bucket: Bucket,
    path: str,
    *,
    progress: ProgressCallback | None = None,
    bandwidth: Bandwidth | None = None,
    unfinished: Sequence[MultipartUpload] | None = None,
) -> Sent:
    """:func:`send` for any source."""
    meter = _Meter(progress, bandwidth)
    if source.size <= PART_BYTES:
        return _send_whole(source, bucket, path, meter)
    if bucket.address(path)[0].location.scheme == "file":
        return _write(source, bucket, path, meter)
    return _send_parts(source, bucket, path, meter, unfinished)


def part_bytes(size: int) -> int:
    """Size of the parts in which an object of ``size`` bytes goes; a resumed upload must cut as the first try did."""
    return max(PART_BYTES, -(-size // MAX_PARTS))


def etag_of(file: Path) -> str:
    """What a server whose ETags are MD5s calls the file once :func:`send` has sent it."""
    with _File(file) as source:
        if source.size <= PART_BYTES:
            return _md5(source.read(0, source.size)).hexdigest()
        length = part_bytes(source.size)
        pieces = (source.read(at, min(length, source.size - at)) for at in range(0, source.size, length))
        return _etag([Part(i, len(piece), _md5(piece).hexdigest()) for i, piece in enumerate(pieces)])


def _send_whole(source: UploadSource, bucket: Bucket, path: str, meter: _Meter) -> Sent:
    data = source.read(0, source.size)
    meter.gate(len(data))
    bucket.put(path, data)
    meter.moved(len(data))
    info = bucket.info(path)
    proved = (info.bytes, info.etag) == (len(data), _md5(data).hexdigest())
    return _checked(bucket, path, Sent(source.size, digest.of_bytes(data), info.etag, 0, "etag"), proved)


def _write(source: UploadSource, bucket: Bucket, path: str, meter: _Meter) -> Sent:
    """To local disk: below another name first, then renamed."""
    content = digest.hasher("blake3")
    connection, key = bucket.address(path)
    with map_errors(bucket.url, path):
        try:
            with obstore.open_writer(connection.store, key, max_concurrency=1) as output:
                for start in range(0, source.size, LOCAL_PIECE_BYTES):
                    piece = source.read(start, min(LOCAL_PIECE_BYTES, source.size - start))
                    content.update(piece)
                    meter.gate(len(piece))
                    output.write(piece)
                    meter.moved(len(piece))
        except OSError as error:  # a writer's errors are of this class alone
            raise GenericError(str(error)) from error
    sent = Sent(source.size, f"blake3:{content.hexdigest()}", bucket.info(path).etag, 0, "etag")
    return _checked(bucket, path, sent, proved=False)


def _send_parts(
    source: UploadSource, bucket: Bucket, path: str, meter: _Meter, unfinished: Sequence[MultipartUpload] | None
) -> Sent:
    content = digest.hasher("blake3")
    parts: list[Part] = []
    resumed = 0
    length = part_bytes(source.size)
    opening = Call(functools.partial(_opened, bucket, path, unfinished))  # the first part is read meanwhile
    read = _Buffers(source, length).read if isinstance(source, _File) else source.read
    flying: deque[Call[Part]] = deque()
    try:
        for number, start in enumerate(range(0, source.size, length), start=1):
            data = read(start, min(length, source.size - start))
            content.update(data)
            upload, there, checksum = opening.result()
            known = _same(there, number, data)
            if known is not None:
                parts.append(replace(known, crc32=crc32(data) if checksum else None))
                resumed += len(data)
                meter.moved(len(data))
                continue
            if len(flying) == PARTS_IN_FLIGHT:  # this one was read and hashed while they were on their way
                parts.append(flying.popleft().result())
            flying.append(Call(functools.partial(_send_part, upload, number, data, checksum, meter)))
        parts += [call.result() for call in flying]
    finally:
        opening.join()
        for call in flying:
            call.join()
    etag = _complete(upload, parts, bucket)
    sent = Sent(source.size, f"blake3:{content.hexdigest()}", etag, resumed, "checksum")
    return _checked(bucket, path, sent, proved=checksum and etag == _etag(parts))


def _opened(
    bucket: Bucket, path: str, unfinished: Sequence[MultipartUpload] | None
) -> tuple[MultipartUpload, dict[int, list[Part]], bool]:
    """The upload to go on with and the parts it has by number, or a new one; whether its parts go with checksums."""
    checksum = multipart.verifies_checksums(bucket, path)
    for upload in multipart.to_resume(bucket, path) if unfinished is None else unfinished:
        if upload.path == path:
            there: dict[int, list[Part]] = {}
            try:
                for part in upload.parts():
                    there.setdefault(part.number, []).append(part)
            except UploadEndedError:
                continue
            return upload, there, checksum
    return multipart.begin(bucket, path, checksum=checksum), {}, checksum


def _same(there: dict[int, list[Part]], number: int, data: Buffer) -> Part | None:
    """The server's part of that number when it has the same content."""
    candidates = [part for part in there.get(number, ()) if part.bytes == len(data)]
    md5 = _md5(data).hexdigest() if candidates else ""
    return next((part for part in candidates if part.etag == md5), None)


def _send_part(upload: MultipartUpload, number: int, data: Buffer, checksum: bool, meter: _Meter) -> Part:
    part = upload.send(number, data, checksum=checksum, gate=meter.gate)
    meter.moved(len(data))
    return part


def _complete(upload: MultipartUpload, parts: list[Part], bucket: Bucket) -> str:
    """Make the object; its ETag."""
    try:
        return upload.complete(parts)
    except UploadEndedError:
        try:
            if bucket.info(upload.path).etag == _etag(parts):  # it was completed, and the answer was lost
                return _etag(parts)
        except NotFoundError:
            pass
        raise


def _checked(bucket: Bucket, path: str, sent: Sent, proved: bool) -> Sent:
    """``sent`` when it is proved, or else when reading it back proves it."""
    if proved:
        return sent
    if digest.of_chunks(bucket.chunks(path)) != sent.digest:
        bucket.delete(path)
        raise CorruptError(f"{bucket.url}/{path}: what arrived is not what was sent", "send it again")
    return replace(sent, proof="read-back")


def _etag(parts: list[Part]) -> str:
    """What a server whose ETags are MD5s calls the object made of these parts; otherwise nothing that it would."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in sorted(parts, key=lambda part: part.number))
    except ValueError:
        return ""
    return f"{_md5(joined).hexdigest()}-{len(parts)}"


def _md5(data: Buffer) -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


class _Meter:
    """Progress and bandwidth of one transfer."""

    def __init__(self, progress: ProgressCallback | None, bandwidth: Bandwidth | None) -> None:
        self._progress = progress
        self._bandwidth = bandwidth

    def gate(self, n: int) -> None:
        if self._bandwidth is not None:
            self._bandwidth.take(n)

    def moved(self, n: int) -> None:
        if self._progress is not None:
            self._progress(n)


class _File:
    """A local file; what it is when it is opened is what it must be to the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self._handle, length, start)
        if len(data) != length:
            raise self._shorter()
        return data

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer."""
        if os.preadv(self._handle, [buffer], start) != len(buffer):
            raise self._shorter()

    def _shorter(self) -> CorruptError:
        return CorruptError(f"{self._path} became shorter while it was sent", "send it again")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


class _Buffers:
    """Reads a file into two buffers in turn, for memory that is new for every part costs a quarter of the reading.

    What a call returns is valid until the one after the next: one part is on its way while another is read.
    """

    def __init__(self, file: _File, length: int) -> None:
        self._file = file
        # not bytearrays: those are filled with zeros first, while no other thread may run
        self._buffers = deque(memoryview(mmap.mmap(-1, length)) for _ in range(PARTS_IN_FLIGHT + 1))

    def read(self, start: int, length: int) -> memoryview:
        self._buffers.rotate()
        data = self._buffers[0][:length]
        self._file.read_into(data, start)
        return data


class _Object:
    """An object of another bucket."""

    def __init__(self, bucket: Bucket, path: str, size: int) -> None:
        self._bucket = bucket
        self._path = path
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        return bytes(self._bucket.get_range(self._path, start, length))
