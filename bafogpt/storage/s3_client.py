"""Connect to a bucket: which server, which credentials, how long to retry.

obstore moves the data. boto3 creates buckets, and finds credentials that are not in the environment (a profile,
single sign-on, the role of a machine); it is imported only for that.
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
from bafogpt.core.errors import ConfigError, NotFoundError
from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.storage.errors import boto3_error, no_credentials

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
    """The parts of a bucket's URL: the store (bucket name, or folder) and the prefix within it."""

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
    """This machine's own S3 server, started if it does not run, and kept until this process ends."""
    from bafogpt.storage.embedded import server  # imported only by processes that use it

    with _leases_lock:
        held = _leases.get(home)
        if held is not None and server.status(home) == held.endpoint:
            return held.endpoint
        _leases[home] = server.lease(home)
        if held is not None:  # that server was stopped
            held.release()
        return _leases[home].endpoint


def endpoint_url(settings: Settings) -> str:
    """The URL of the S3 server; empty for AWS."""
    return embedded(Path(settings.home)).url if settings.s3_endpoint == EMBEDDED else settings.s3_endpoint


def boto3_client(settings: Settings | None = None, *, bulk: bool = False) -> Any:
    """A boto3 S3 client with the server and the credentials of buckets.

    A ``bulk`` client neither retries nor signs content, for callers that retry and verify content themselves.
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
        # no optional checksums: some servers do not know them, and content is verified by digests of our own
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **({"proxies": {}} if _is_loopback(url) else {}),
    )
    session = boto3.session.Session(**keys)
    return session.client("s3", endpoint_url=url or None, region_name=settings.s3_region, config=config)


class Connection:
    """The store of a bucket and all its children, opened when it is first used."""

    def __init__(self, location: BucketLocation, settings: Settings) -> None:
        self.location = location
        self.settings = settings
        self.verifies_checksums: bool | None = None
        """Whether the server refuses content that does not match its checksum; ``None`` until it was tested."""

    @functools.cached_property
    def store(self) -> S3Store | LocalStore:
        """The store that retries for ``s3_timeout_s`` seconds."""
        return self.open(retry=True)

    @functools.cached_property
    def read_store(self) -> S3Store | LocalStore:
        """The store for reads: it drops a silent connection early enough to retry within ``s3_timeout_s``."""
        return self.open(retry=True, silence_s=self.settings.s3_timeout_s / 3)

    @functools.cached_property
    def bulk_client(self) -> Any:
        """The boto3 client for multipart uploads."""
        return boto3_client(self.settings, bulk=True)

    def open(self, *, retry: bool, silence_s: float | None = None) -> S3Store | LocalStore:
        """A new store, which gives up a request after ``silence_s`` seconds without data (``s3_timeout_s``).

        Raises :class:`NotFoundError` for a folder that does not exist, :class:`~bafogpt.core.errors.AuthError` without
        credentials."""
        if self.location.scheme == "file":
            if not os.path.isdir(self.location.store):
                raise NotFoundError(f"folder {self.location.store} does not exist", f"mkdir -p {self.location.store}")
            return LocalStore(self.location.store, automatic_cleanup=True)
        url = endpoint_url(self.settings)
        options: dict[str, Any] = {}
        if url:
            options = {"endpoint": url, "aws_endpoint_url_s3": url}  # overrides the variable of that name
        if self.settings.s3_endpoint == EMBEDDED:
            options["credential_provider"] = functools.partial(_static, embedded(Path(self.settings.home)))
        elif not os.environ.get("AWS_ACCESS_KEY_ID"):
            options["credential_provider"] = _found_by_boto3()
        return S3Store(
            self.location.store,
            region=self.settings.s3_region,
            client_options=self._client_options(url, silence_s),
            retry_config=self._retry_config(retry),
            **options,
        )

    def create(self) -> None:
        """Create the bucket or the folder if it does not exist."""
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
            if "BucketAlreadyOwnedByYou" not in str(error):
                raise boto3_error(error, f"creating bucket '{self.location.store}'") from error

    def _client_options(self, url: str, silence_s: float | None) -> ClientConfig:
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(5.0, self.settings.s3_timeout_s)),
            "read_timeout": timedelta(seconds=silence_s or self.settings.s3_timeout_s),
            # limits a whole request with its body, and a large object may come over a slow line
            "timeout": timedelta(hours=6),
            "pool_max_idle_per_host": "16",
        }
        if _is_loopback(url):  # never through a proxy
            options["proxy_url"] = url
            options["proxy_excludes"] = ",".join(_LOOPBACK)
        return options

    def _retry_config(self, retry: bool) -> RetryConfig:
        if not retry:
            return {"max_retries": 0}
        return {
            "max_retries": 1000,  # the timeout is the limit
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
        raise no_credentials() from error
