"""Map the errors of the storage clients, obstore and boto3, to errors that a user can act on.

obstore raises one class for most failures, with the details in a text of many lines, which is parsed only here.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from obstore import exceptions

from bafogpt.core.errors import (
    AuthError,
    BafoError,
    ClockError,
    ConflictError,
    CorruptError,
    DiskFullError,
    NotFoundError,
    StorageError,
    UnreachableError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

READ_ATTEMPTS = 3
"""Reads of damaged bytes before they count as damaged in the bucket."""

CREDENTIALS_HINT = "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… with keys that may use this bucket"
RETRY_HINT = "check the network and the endpoint (bafogpt config show), then repeat the command"
CLOCK_HINT = "set the clock (timedatectl), or rent another machine"

_STATUS = re.compile(r"status code: (\d{3})")
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")
_OS_REASON = re.compile(r'message: "([^"\\]{1,80})"')
_CLOCK_CODE = "RequestTimeTooSkewed"
"""S3's response to a signature that is more than 15 minutes off (S3 API reference, "Error responses")."""
_DISK_FULL = ("(os error 28)", "(os error 122)", "(os error 27)")  # ENOSPC, EDQUOT, EFBIG
_DIGEST_CODES = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
_RETRIED_CODES = ("RequestTimeout", "SlowDown", "InternalError")
_RANGE = ("416 Range Not Satisfiable", "StartTooLarge", "Requested range was invalid")


def retry_on_corruption(read: Callable[[], T]) -> T:
    """Call ``read``, up to :data:`READ_ATTEMPTS` times while it raises :class:`CorruptError`: a bit may have flipped
    in transit."""
    for left in reversed(range(READ_ATTEMPTS)):
        try:
            return read()
        except CorruptError as error:
            if not left:
                raise
            log.warning("%s: reading it again", error.message)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def map_errors(bucket: str, path: str = "") -> Iterator[None]:
    """Turn obstore's errors about the object ``path`` of ``bucket`` (a URL) into a :class:`BafoError`."""
    try:
        yield
    except BafoError:
        raise
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise _obstore_error(error, bucket, f"{bucket}/{path}" if path else bucket) from error


def boto3_error(error: Exception, where: str) -> BafoError:
    """boto3's error about ``where`` as a :class:`BafoError`; :class:`UnreachableError` where a retry may help."""
    from botocore.exceptions import ClientError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return no_credentials()
    if not isinstance(error, ClientError):
        return UnreachableError(f"{where}: cannot be reached ({type(error).__name__})", RETRY_HINT)
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "BucketAlreadyExists":
        return ConflictError(f"{where} belongs to another account", "choose another name")
    if code == _CLOCK_CODE:
        return ClockError(f"{where}: access refused, this machine's clock is wrong ({code})", CLOCK_HINT)
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
        return AuthError(f"{where}: access refused ({code})", CREDENTIALS_HINT)
    if (status >= 500 and status != 501) or status in (408, 429) or code in _RETRIED_CODES:
        return UnreachableError(f"{where}: the server returned {status} {code}", RETRY_HINT)
    if status == 404:
        return NotFoundError(f"{where} does not exist ({code})", "bafogpt config show")
    if code in _DIGEST_CODES:
        return CorruptError(f"{where}: the data was corrupted in transit ({code})", "repeat the command")
    return StorageError(f"{where}: {code}", "bafogpt config show")


def no_credentials() -> AuthError:
    """The error for a machine without S3 credentials."""
    return AuthError("no S3 credentials in the environment, and no AWS profile", CREDENTIALS_HINT)


def _obstore_error(error: Exception, bucket: str, where: str) -> BafoError:
    text, list_hint = str(error), f"bafogpt storage ls {bucket}"
    code = match.group(1) if (match := _S3_CODE.search(text)) else ""
    status = int(match.group(1)) if (match := _STATUS.search(text)) else 0
    if code == "NoSuchBucket":
        name = bucket.removeprefix("s3://").partition("/")[0]
        hint = "bafogpt config show; on this machine's own server, bafogpt data prepare creates the bucket"
        return NotFoundError(f"no bucket '{name}' at this endpoint", hint)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where} does not exist", list_hint)
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return ConflictError(f"{where} exists already", list_hint)
    if code == _CLOCK_CODE:
        return ClockError(f"{where}: access refused, this machine's clock is wrong ({code})", CLOCK_HINT)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        return AuthError(f"{where}: access refused ({code or status or 'no permission'})", CREDENTIALS_HINT)
    if any(mark in text for mark in _DISK_FULL):
        return DiskFullError(f"{where}: no space left on the disk", "df -h")
    if any(mark in text for mark in _RANGE):
        return CorruptError(f"{where} is shorter than it should be", list_hint)
    if bucket.startswith("file://") or (400 <= status < 500 and status not in (408, 429)):
        first_line = re.sub(r"//[^/\s@]*@", "//", text.partition("\n")[0])  # a URL without its password
        return StorageError(f"{where}: {code or first_line}", list_hint)
    return UnreachableError(f"{where}: {_why_unreachable(text, code, status)}", RETRY_HINT)


def _why_unreachable(text: str, code: str, status: int) -> str:
    if status:
        return f"the server returned {status} {code}".rstrip()
    if "TimedOut" in text or "kind: Timeout" in text:
        return "no answer in time"
    reason = _OS_REASON.search(text)
    return f"cannot be reached ({reason.group(1).lower()})" if reason else "cannot be reached"
