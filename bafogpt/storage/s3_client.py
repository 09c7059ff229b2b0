"""What a bucket's URL and the settings mean: which server, whose credentials, how long to try.

obstore carries the bytes. boto3 makes buckets, and finds the credentials that the environment does not hold (a
profile, single sign-on, the role of a machine); it is imported only then.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, S3Store

from bafogpt.core import settings as settings_module
from bafogpt.core.errors import AuthError, ConfigError, NotFoundError
from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.storage.errors import CREDENTIALS_HINT, creation_failure

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

    from bafogpt.storage.embedded.files import Endpoint
    from bafogpt.storage.embedded.server import Lease

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_leases: dict[Path, Lease] = {}
_leases_lock = threading.Lock()


@dataclass(frozen=True)
class BucketLocation:
    """A bucket's URL taken apart: the store (bucket name, or folder) and the prefix within it."""

    scheme: str
    store: str
    prefix: str


def parse(url: str) -> BucketLocation:
    """``s3://NAME[/PREFIX]`` or ``file:///FOLDER``. Raises :class:`ConfigError` for anything else."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and _BUCKET_NAME.fullmatch(parts.netloc):
        return BucketLocation("s3", parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return BucketLocation("file", unquote(parts.path).rstrip("/") or "/", "")
    raise ConfigError(f"'{url}' is not a bucket", "write s3://NAME, s3://NAME/PREFIX or file:///FOLDER")


def embedded(home: Path) -> Endpoint:
    """This machine's own S3 server, started if need be and kept for the life of this process."""
    from bafogpt.storage.embedded import server  # a process that reads from elsewhere need not load what starts servers

    with _leases_lock:
        held = _leases.get(home)
        if held is not None and server.status(home) == held.endpoint:
            return held.endpoint
        _leases[home] = server.lease(home)
        if held is not None:  # that server ended, or was stopped
            held.release()
        return _leases[home].endpoint


def endpoint_url(settings: Settings) -> str:
    """The URL of the S3 server; empty for AWS."""
    return embedded(Path(settings.home)).url if settings.s3_endpoint == EMBEDDED else settings.s3_endpoint


def boto3_client(settings: Settings | None = None, *, bulk: bool = False) -> Any:
    """A boto3 S3 client for the server and the credentials that buckets use.

    One for ``bulk`` is for a caller who tries again and checks content himself: it asks once, and does not hash what
    it sends in order to sign it.
    """
    import boto3
    from botocore.config import Config

    settings = settings or settings_module.load()
    url = endpoint_url(settings)
    keys: dict[str, str] = {}
    if settings.s3_endpoint == EMBEDDED:
        endpoint = embedded(Path(settings.home))
        keys = {"aws_access_key_id": endpoint.access_key, "aws_secret_access_key": endpoint.secret_key}
    config = Config(
        connect_timeout=5,
        read_timeout=settings.s3_timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1 if bulk else 5},
        s3={"addressing_style": "path" if url else "auto", **({"payload_signing_enabled": False} if bulk else {})},
        # no checksums beyond what S3 demands: not every server knows them, and content is verified by its own digests
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **({"proxies": {}} if _is_loopback(url) else {}),
    )
    session = boto3.session.Session(**keys)
    return session.client("s3", endpoint_url=url or None, region_name=settings.s3_region, config=config)


class Connection:
    """The store behind a bucket and all its children, opened when it is first needed."""

    def __init__(self, location: BucketLocation, settings: Settings) -> None:
        self.location = location
        self.settings = settings
        self.verifies_checksums: bool | None = None
        """Whether the server refuses content that does not match its checksum; ``None`` until it was tried."""

    @functools.cached_property
    def store(self) -> S3Store | LocalStore:
        """The store that retries for ``s3_timeout_s`` seconds."""
        return self.open(retry=True)

    @functools.cached_property
    def reading(self) -> S3Store | LocalStore:
        """The same for reading: a connection that falls silent is given up early enough to try another in time."""
        if self.location.scheme != "s3":
            return self.store
        return self._open_s3(retry=True, silence_s=self.settings.s3_timeout_s / 3)

    @functools.cached_property
    def bulk_client(self) -> Any:
        """The boto3 client for uploads in parts."""
        return boto3_client(self.settings, bulk=True)

    def open(self, *, retry: bool) -> S3Store | LocalStore:
        """A new store. Raises :class:`NotFoundError` for a folder that does not exist, :class:`AuthError` without
        credentials."""
        if self.location.scheme == "file":
            if not os.path.isdir(self.location.store):
                raise NotFoundError(f"folder {self.location.store} does not exist", f"mkdir -p {self.location.store}")
            return LocalStore(self.location.store, automatic_cleanup=True)
        return self._open_s3(retry=retry, silence_s=self.settings.s3_timeout_s)

    def _open_s3(self, *, retry: bool, silence_s: float) -> S3Store:
        """A store that gives up a request, and tries again, when nothing comes for ``silence_s`` seconds."""
        url = endpoint_url(self.settings)
        options: dict[str, Any] = {}
        if url:
            options = {"endpoint": url, "aws_endpoint_url_s3": url}  # stronger than the variable of that name
        if self.settings.s3_endpoint == EMBEDDED:
            options["credential_provider"] = functools.partial(_static, embedded(Path(self.settings.home)))
        elif not os.environ.get("AWS_ACCESS_KEY_ID"):
            options["credential_provider"] = _found_by_boto3()
        return S3Store(
            self.location.store,
            region=self.settings.s3_region,
            client_options=self._client_options(url, silence_s),
            retry_config=self._retry_config() if retry else {"max_retries": 0},
            **options,
        )

    def create(self) -> None:
        """Make the bucket or the folder if it does not exist."""
        if self.location.scheme == "file":
            os.makedirs(self.location.store, exist_ok=True)
            return
        from botocore.exceptions import BotoCoreError, ClientError

        arguments: dict[str, Any] = {"Bucket": self.location.store}
        if not self.settings.s3_endpoint and self.settings.s3_region != "us-east-1":
            arguments["CreateBucketConfiguration"] = {"LocationConstraint": self.settings.s3_region}
        try:
            boto3_client(self.settings).create_bucket(**arguments)
        except (ClientError, BotoCoreError) as error:
            problem = creation_failure(error, self.location.store)
            if problem is not None:
                raise problem from error

    def _client_options(self, url: str, silence_s: float | None = None) -> ClientConfig:
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(5.0, self.settings.s3_timeout_s)),
            "read_timeout": timedelta(seconds=silence_s or self.settings.s3_timeout_s),
            # bounds a whole request, body included: it must let a big object through a slow line
            "timeout": timedelta(hours=6),
            "pool_max_idle_per_host": "16",
        }
        if _is_loopback(url):  # never through the proxy that the environment names
            options["proxy_url"] = url
            options["proxy_excludes"] = ",".join(_LOOPBACK)
        return options

    def _retry_config(self) -> RetryConfig:
        return {
            "max_retries": 1000,  # time is the limit
            "retry_timeout": timedelta(seconds=self.settings.s3_timeout_s),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
        }


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _static(endpoint: Endpoint) -> S3Credential:
    return {"access_key_id": endpoint.access_key, "secret_access_key": endpoint.secret_key, "expires_at": None}


def _found_by_boto3() -> Any:
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except (ValueError, BotoCoreError) as error:
        raise AuthError("no S3 credentials in the environment, and no AWS profile", CREDENTIALS_HINT) from error
