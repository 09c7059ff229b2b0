"""What the storage client raises, as errors that a user can act on.

obstore raises one class for most failures and puts the rest into a text of many lines; this is the one place that
reads those texts.
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
"""How often bytes that are not what was written are read before they count as damaged where they are kept."""

CREDENTIALS_HINT = "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… with keys that may use this bucket"
RETRY_HINT = "check the network and the endpoint (bafogpt config show), then give the same command again"

_STATUS = re.compile(r"status code: (\d{3})")
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")
_OS_REASON = re.compile(r'message: "([^"\\]{1,80})"')
_CLOCK_CODE = "RequestTimeTooSkewed"
"""S3's answer to a signature that is more than 15 minutes off (S3 API reference, "Error responses")."""
CLOCK_HINT = "set the clock (timedatectl), or rent another machine"
_DISK_FULL = ("(os error 28)", "(os error 122)", "(os error 27)")  # ENOSPC, EDQUOT, EFBIG
_DIGEST_CODES = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
_RANGE = ("416 Range Not Satisfiable", "StartTooLarge", "Requested range was invalid")


def retry_on_corruption(read: Callable[[], T]) -> T:
    """What ``read`` gives; its :class:`CorruptError` only after :data:`READ_ATTEMPTS` tries.

    A bit may have flipped on its way. What looking again does not mend is damaged at the other end.
    """
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
    """Turn what obstore raises about the object ``path`` of ``bucket`` (a URL) into a :class:`BafoError`."""
    try:
        yield
    except BafoError:
        raise
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise _to_error(error, bucket, f"{bucket}/{path}" if path else bucket) from error


def creation_failure(error: Exception, name: str) -> BafoError | None:
    """What boto3's refusal to make the bucket ``name`` means; ``None`` when it is there already and usable."""
    from botocore.exceptions import ClientError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return AuthError("no S3 credentials in the environment, and no AWS profile", CREDENTIALS_HINT)
    if not isinstance(error, ClientError):
        return UnreachableError(f"bucket '{name}' cannot be made: the server cannot be reached", RETRY_HINT)
    code = error.response["Error"]["Code"]
    if code == "BucketAlreadyOwnedByYou":
        return None
    if code == "BucketAlreadyExists":
        return ConflictError(f"the bucket name '{name}' belongs to somebody else", "choose another name")
    if error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403):
        return AuthError(f"bucket '{name}' cannot be made: access refused ({code})", CREDENTIALS_HINT)
    return StorageError(f"bucket '{name}' cannot be made ({code})", "bafogpt config show")


def request_failure(error: Exception, where: str) -> BafoError:
    """What boto3's failure of one request about ``where`` means; :class:`UnreachableError` where trying again helps."""
    from botocore.exceptions import ClientError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return AuthError("no S3 credentials in the environment, and no AWS profile", CREDENTIALS_HINT)
    if not isinstance(error, ClientError):
        return UnreachableError(f"{where}: cannot be reached ({type(error).__name__})", RETRY_HINT)
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == _CLOCK_CODE:
        return ClockError(f"{where}: access refused, this machine's clock is wrong ({code})", CLOCK_HINT)
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
        return AuthError(f"{where}: access refused ({code})", CREDENTIALS_HINT)
    if (
        (status >= 500 and status != 501)
        or status in (408, 429)
        or code in ("RequestTimeout", "SlowDown", "InternalError")
    ):
        return UnreachableError(f"{where}: the server answers {status} {code}", RETRY_HINT)
    if status == 404:
        return NotFoundError(f"{where} does not exist ({code})", "bafogpt config show")
    if code in _DIGEST_CODES:
        return CorruptError(f"{where}: what arrived is not what was sent ({code})", "send it again")
    return StorageError(f"{where}: {code}", "bafogpt config show")


def _to_error(error: Exception, bucket: str, where: str) -> BafoError:
    text = str(error)
    found = _S3_CODE.search(text)
    code = found.group(1) if found else ""
    status = int(match.group(1)) if (match := _STATUS.search(text)) else 0
    if code == "NoSuchBucket":
        name = bucket.removeprefix("s3://").partition("/")[0]
        hint = "bafogpt config show; where this machine keeps the bucket, bafogpt data prepare makes it"
        return NotFoundError(f"there is no bucket '{name}' at this endpoint", hint)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where} does not exist", f"bafogpt storage ls {bucket}")
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return ConflictError(f"{where} exists already", f"bafogpt storage ls {bucket}")
    if code == _CLOCK_CODE:
        return ClockError(f"{where}: access refused, this machine's clock is wrong ({code})", CLOCK_HINT)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        return AuthError(f"{where}: access refused ({code or status or 'no permission'})", CREDENTIALS_HINT)
    if any(mark in text for mark in _DISK_FULL):
        return DiskFullError(f"{where}: no space left on the disk", "df -h")
    if any(mark in text for mark in _RANGE):
        return CorruptError(f"{where} is shorter than it should be", f"bafogpt storage ls {bucket}")
    if bucket.startswith("file://") or (400 <= status < 500 and status not in (408, 429)):
        return StorageError(f"{where}: {code or _first_line(text)}", f"bafogpt storage ls {bucket}")
    return UnreachableError(f"{where}: {_why_unreachable(text, code, status)}", RETRY_HINT)


def _why_unreachable(text: str, code: str, status: int) -> str:
    if status:
        return f"the server answers {status} {code}".rstrip()
    if "TimedOut" in text or "kind: Timeout" in text:
        return "no answer in time"
    reason = _OS_REASON.search(text)
    return f"cannot be reached ({reason.group(1).lower()})" if reason else "cannot be reached"


def _first_line(text: str) -> str:
    """The error's first line, without what may precede an ``@`` in a URL."""
    return re.sub(r"//[^/\s@]*@", "//", text.partition("\n")[0])
