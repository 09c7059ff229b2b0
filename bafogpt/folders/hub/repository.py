"""The Hugging Face Hub: its client, its errors, and a repository read as a bucket.

The token comes from ``HF_TOKEN`` in the environment and is never stored. ``HF_ENDPOINT`` names another Hub. The same
calls work with huggingface_hub 1.3 and 2.x.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from obstore.store import HTTPStore

from bafogpt.core.errors import (
    AuthError,
    BafoError,
    ConfigError,
    ConflictError,
    CorruptError,
    NotFoundError,
    StorageError,
    UnreachableError,
    UsageError,
)
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket, ObjectInfo
from bafogpt.storage.errors import RETRY_HINT
from bafogpt.storage.s3_client import BucketLocation, Connection

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKEN_HINT = "export HF_TOKEN=… with a token that may {what} it"  # noqa: S105 - the name, not the token
_URL = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")


@dataclass(frozen=True)
class HubLocation:
    """A model repository, and one of its revisions: a branch, a tag or a commit; ``None`` is ``main``."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, url: str) -> HubLocation:
        """``hf://ORG/NAME[@REV]``. Raises :class:`ConfigError` for anything else."""
        match = _URL.fullmatch(url)
        if match is None:
            raise ConfigError(
                f"'{url}' is not a repository of the Hub", "write hf://ORG/NAME or hf://ORG/NAME@REVISION"
            )
        return cls(match["repo"], match["revision"])

    @property
    def url(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def endpoint() -> str:
    """The Hub's address."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def token() -> str | None:
    """The value of ``HF_TOKEN``."""
    return os.environ.get("HF_TOKEN") or None


def client() -> HfApi:
    """The Hub's own client, with the token from the environment or none, never with a token that it has stored."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    # its warnings show presigned URLs
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HfApi(endpoint=endpoint(), token=token() or False, library_name="bafogpt")


@contextlib.contextmanager
def map_errors(location: HubLocation, to_do: str = "read") -> Iterator[None]:
    """Turn errors of huggingface_hub, while it is to ``read`` or ``write`` ``location``, into a :class:`BafoError`."""
    try:
        yield
    except BafoError:
        raise
    except Exception as error:
        problem = _to_error(error, location, to_do)
        if problem is None:
            raise
        raise problem from error


class HubRepo(Bucket):
    """A repository at one commit, read as a bucket. Small files are verified by the Hub's hashes; for large files
    :meth:`digest` gives the hash to verify them by."""

    def __init__(self, location: HubLocation, commit: str, entries: dict[str, Any], settings: Settings) -> None:
        super().__init__(location.url, _HubConnection(location.repo, commit, settings), "")
        self.location = location
        self.commit = commit
        self._entries = entries

    @classmethod
    def at(cls, location: HubLocation, settings: Settings) -> HubRepo:
        """The repository at its current commit. Raises :class:`NotFoundError` and :class:`AuthError`."""
        with map_errors(location):
            api = client()
            info = api.model_info(location.repo, revision=location.revision)
            if info.sha is None:  # a repository without a commit
                return cls(location, "", {}, settings)
            tree = api.list_repo_tree(location.repo, revision=info.sha, recursive=True)
            entries = {each.path: each for each in tree if hasattr(each, "size")}
        return cls(location, info.sha, entries, settings)

    def digest(self, path: str) -> str | None:
        """``sha256:hex`` of a large file's content; ``None`` for a small file, which :meth:`get` verifies."""
        large = self._entries[path].lfs
        return f"sha256:{large.sha256}" if large else None

    def git_id(self, path: str) -> str:
        """Git's id of a small file's content."""
        return str(self._entries[path].blob_id)

    def list(self, prefix: str = "") -> builtins.list[ObjectInfo]:
        """Every file below ``prefix``, sorted. Git keeps no times, so all have the same old one."""
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        found = (path for path in self._entries if path.startswith(below))
        return [self.info(path) for path in sorted(found)]

    def info(self, path: str) -> ObjectInfo:
        entry = self._require(path)
        large = entry.lfs
        return ObjectInfo(path, large.size if large else entry.size, _LONG_AGO, self.digest(path) or entry.blob_id)

    def get(self, path: str) -> bytes:
        entry = self._require(path)
        with self._explained():
            data = super().get(path)
        if not entry.lfs and git_id(data) != entry.blob_id:
            raise CorruptError(f"{self.url}/{path}: what arrived does not have the Hub's hash", "repeat the command")
        return data

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        if not self._require(path).lfs:  # at most 10 MB, and git's hash is of the whole file
            return memoryview(self.get(path))[start : start + length]
        with self._explained():
            return super().get_range(path, start, length)

    def chunks(self, path: str, chunk_bytes: int = 4 << 20) -> Iterator[bytes]:
        if not self._require(path).lfs:
            yield self.get(path)
            return
        with self._explained():
            yield from super().chunks(path, chunk_bytes)

    def put(self, path: str, data: bytes, *, create_only: bool = False) -> None:
        """Raises :class:`UsageError`: a repository changes by commits (:mod:`bafogpt.folders.hub.push`)."""
        raise UsageError(f"{self.url} is read-only here", f"bafogpt storage push FOLDER {self.url}")

    def delete(self, path: str) -> None:
        """Raises :class:`UsageError`."""
        self.put(path, b"")

    def _require(self, path: str) -> Any:
        if path not in self._entries:
            raise NotFoundError(f"{self.url}/{path} does not exist", f"bafogpt storage ls {self.url}")
        return self._entries[path]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Name HF_TOKEN, not S3 keys, in an error of the storage client."""
        try:
            yield
        except AuthError as error:
            raise AuthError(error.message, TOKEN_HINT.format(what="read")) from error


def git_id(data: bytes) -> str:
    """Git's id of that content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class _HubConnection(Connection):
    """Ranged reads of a commit's files. The Hub redirects large ones to a store, which does not receive the token."""

    def __init__(self, repo: str, commit: str, settings: Settings) -> None:
        super().__init__(BucketLocation("hf", repo, ""), settings)
        self._base = f"{endpoint()}/{repo}/resolve/{commit}"

    def open(self, *, retry: bool, silence_s: float | None = None) -> Any:
        options = self._client_options(self._base, silence_s)
        if token():
            options["default_headers"] = {"authorization": f"Bearer {token()}"}
        return HTTPStore(self._base, client_options=options, retry_config=self._retry_config(retry))

    def create(self) -> None:
        raise UsageError(
            f"hf://{self.location.store} is created by a push", "bafogpt storage push FOLDER hf://ORG/NAME"
        )


def _to_error(error: BaseException, location: HubLocation, to_do: str) -> BafoError | None:
    """The error for one of huggingface_hub or of its HTTP client; ``None`` for a defect."""
    from huggingface_hub import errors

    where = location.url
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, location, to_do)
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"'{where}' is not a repository of the Hub", "write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError(f"{where}: HF_HUB_OFFLINE forbids requests to the Hub", "unset HF_HUB_OFFLINE")
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
        return UnreachableError(f"{where}: the Hub cannot be reached ({type(error).__name__})", RETRY_HINT)
    if error.__cause__ is not None:  # the client wraps the error of one file
        return _to_error(error.__cause__, location, to_do)
    if isinstance(error, ValueError):
        return StorageError(f"{where}: {str(error).strip().splitlines()[0]}", f"bafogpt storage ls {where}")
    return None


def _refusal(error: Any, location: HubLocation, to_do: str) -> BafoError:
    from huggingface_hub import errors

    where, status = location.url, error.response.status_code
    hint = TOKEN_HINT.format(what=to_do)
    if isinstance(error, errors.GatedRepoError):
        return AuthError(f"{where} is gated and access was not granted", f"ask for it at {endpoint()}/{location.repo}")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"{where}: no such revision", f"bafogpt storage ls hf://{location.repo}")
    if status == 401 and not token():
        return AuthError(f"{where} is private or does not exist, and HF_TOKEN is not set", hint)
    if status == 401:
        return AuthError(f"{where}: the Hub does not accept HF_TOKEN", hint)
    if status == 403:
        return AuthError(f"{where}: HF_TOKEN may not {to_do} it", hint)
    if status == 404:
        return NotFoundError(f"{where} does not exist, or HF_TOKEN has no access to it", "check the name and HF_TOKEN")
    if status in (409, 412):
        return ConflictError(f"{where} was changed by another commit meanwhile", "repeat the command")
    if status >= 500 or status in (408, 429):
        return UnreachableError(f"{where}: the Hub returned {status}", RETRY_HINT)
    reason = (error.server_message or f"the Hub returned {status}").strip().splitlines()[0]
    return StorageError(f"{where}: {reason}", f"bafogpt storage ls {where}")
