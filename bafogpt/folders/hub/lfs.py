"""Send large files to the Hub by Git LFS, in the parts that the Hub asks for, resumably.

The Hub's own client restarts a file each time. Here a journal per file keeps the URLs of its parts and which of them
the Hub's store has; so at most one part is sent twice.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core import files
from bafogpt.core.errors import StorageError
from bafogpt.folders.hub.repository import HubLocation
from bafogpt.folders.listing import FileSource
from bafogpt.storage.bucket import ProgressCallback
from bafogpt.storage.transfer.bandwidth import Bandwidth

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WINDOW_BYTES = 4 << 20
_HEADERS = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}


@dataclass
class _Journal:
    """An upload that the Hub has begun: the URLs of its parts, and the ETags of the parts that it has."""

    urls: list[str]
    part_bytes: int
    complete: str
    verify: dict[str, Any] | None
    etags: list[str]


class Uploads:
    """Sends large files by Git LFS. ``folder`` keeps the journals, readable by their owner only."""

    def __init__(
        self,
        api: HfApi,
        location: HubLocation,
        folder: Path,
        progress: ProgressCallback = lambda count: None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self._api = api
        self._location = location
        self._folder = folder
        self._progress = progress
        self._bandwidth = bandwidth

    def send(self, sha256: str, source: FileSource) -> None:
        """Send a file's content unless the Hub has it."""
        from huggingface_hub.errors import HfHubHTTPError

        journal = self._read(sha256, source.size)
        if journal is not None:
            try:
                self._send_parts(sha256, source, journal)
                return
            except HfHubHTTPError as error:
                if not 400 <= error.response.status_code < 500:
                    raise
                self._path(sha256).unlink(missing_ok=True)  # its URLs have expired
        action = self._ask(sha256, source)
        if action is None:
            self._progress(source.size)
            return
        header = action["upload"].get("header") or {}
        if header.get("chunk_size") is None:
            self._put(action["upload"]["href"], _Piece(source, 0, source.size, self._progress, self._bandwidth))
            self._confirm(action.get("verify"), sha256, source.size)
            return
        numbered = sorted((int(name), url) for name, url in header.items() if name.isdecimal())
        journal = _Journal(
            [url for _, url in numbered],
            int(header["chunk_size"]),
            action["upload"]["href"],
            action.get("verify"),
            [],
        )
        if len(journal.urls) != -(-source.size // journal.part_bytes):
            raise StorageError(f"{self._location.url}: the Hub's part sizes do not fit the file", "try again later")
        self._write(sha256, journal)
        self._send_parts(sha256, source, journal)

    def forget(self, hashes: Iterable[str]) -> None:
        """Remove the journals of files that a commit holds."""
        for sha256 in hashes:
            self._path(sha256).unlink(missing_ok=True)

    def _ask(self, sha256: str, source: FileSource) -> dict[str, Any] | None:
        """The URLs to send the content to; ``None`` when the Hub has it."""
        import httpx
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

        info = UploadInfo(size=source.size, sample=b"", sha256=bytes.fromhex(sha256))
        ask = functools.partial(
            post_lfs_batch_info,
            upload_infos=[info],
            token=self._api.token,  # type: ignore[arg-type]
            repo_type="model",
            repo_id=self._location.repo,
            revision=self._location.revision,
            endpoint=self._api.endpoint,
            transfers=["basic", "multipart"],
        )
        try:
            actions, problems, _ = ask()
        except httpx.RemoteProtocolError:  # a kept connection that the Hub had closed; its client does not retry
            actions, problems, _ = ask()
        if problems:
            raise StorageError(f"{self._location.url}: {problems[0]['error']['message']}", "repeat the command")
        return actions[0].get("actions")

    def _send_parts(self, sha256: str, source: FileSource, journal: _Journal) -> None:
        from huggingface_hub.utils import hf_raise_for_status, http_backoff

        done = min(len(journal.etags) * journal.part_bytes, source.size)
        self._progress(done)
        for url in journal.urls[len(journal.etags) :]:
            length = min(journal.part_bytes, source.size - done)
            etag = self._put(url, _Piece(source, done, length, self._progress, self._bandwidth))
            if not etag:
                raise StorageError(f"{self._location.url}: the Hub returned no ETag for a part", "repeat the command")
            journal.etags.append(etag)
            self._write(sha256, journal)
            done += length
        parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(journal.etags, start=1)]
        answer = http_backoff("POST", journal.complete, json={"oid": sha256, "parts": parts}, headers=_HEADERS)
        hf_raise_for_status(answer)
        self._confirm(journal.verify, sha256, source.size)

    def _put(self, url: str, piece: _Piece) -> str:
        """Send one part. Returns its ETag. The Hub's client retries transient errors."""
        from huggingface_hub.utils import hf_raise_for_status, http_backoff

        answer = http_backoff("PUT", url, data=piece)
        hf_raise_for_status(answer)
        return str(answer.headers.get("etag") or "")

    def _confirm(self, verify: dict[str, Any] | None, sha256: str, size: int) -> None:
        """Let the Hub verify the file, if it offers that."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        if verify is not None:
            headers = build_hf_headers(token=self._api.token)
            hf_raise_for_status(
                http_backoff("POST", verify["href"], headers=headers, json={"oid": sha256, "size": size})
            )

    def _path(self, sha256: str) -> Path:
        name = hashlib.sha256(f"{self._api.endpoint} {self._location.repo} {sha256}".encode()).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def _read(self, sha256: str, size: int) -> _Journal | None:
        try:
            journal = _Journal(**json.loads(self._path(sha256).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        fits = journal.part_bytes > 0 and len(journal.urls) == -(-size // journal.part_bytes)
        return journal if fits and len(journal.etags) <= len(journal.urls) else None

    def _write(self, sha256: str, journal: _Journal) -> None:
        # the URLs allow to write to the upload
        files.write_atomic(self._path(sha256), json.dumps(vars(journal)), mode=0o600)


class _Piece(io.RawIOBase):
    """A span of a file as a file object for an HTTP client, which can rewind it to send it again."""

    def __init__(
        self, source: FileSource, start: int, length: int, progress: ProgressCallback, bandwidth: Bandwidth | None
    ) -> None:
        super().__init__()
        self._source = source
        self._start = start
        self._length = length
        self._progress = progress
        self._bandwidth = bandwidth
        self._position = self._farthest = self._window_start = 0
        self._window = b""

    def read(self, size: int = -1, /) -> bytes:
        left = self._length - self._position
        if left <= 0:
            return b""
        if not self._window_start <= self._position < self._window_start + len(self._window):
            self._window_start = self._position
            self._window = self._source.read(self._start + self._position, min(WINDOW_BYTES, left))
        begin = self._position - self._window_start
        piece = self._window[begin : begin + (left if size < 0 else size)]
        if self._bandwidth is not None:
            self._bandwidth.take(len(piece))
        self._position += len(piece)
        if self._position > self._farthest:
            self._progress(self._position - self._farthest)
            self._farthest = self._position
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
