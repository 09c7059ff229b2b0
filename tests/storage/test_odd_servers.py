"""Servers that verify no checksums, refuse, or fail for a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import PermissionDeniedError

from bafogpt.core.errors import AuthError, ClockError, NotFoundError, StorageError, UnreachableError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.errors import map_errors
from bafogpt.storage.transfer import multipart
from tests.storage.tools import Clock

PART = 5 << 20
Make = Callable[[int], Path]


class _Odd:
    """A client of a server that is odd about checksums; everything else is the real one's."""

    def __init__(self, real: Any, **answers: Any) -> None:
        self._real = real
        self._answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Any:
        def ask(**arguments: Any) -> Any:
            self.calls.append((operation, arguments))
            answer = self._answers.get(operation, getattr(self._real, operation))
            return answer(**arguments)

        return ask


def _refused(code: str, status: int) -> Callable[..., Any]:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> Any:
        answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(answer, "Any")

    return refuse


@pytest.mark.parametrize("kind", ["takes any checksum", "takes none", "knows no checksums"])
def test_a_server_that_was_not_seen_to_verify_checksums_is_sent_none_and_read_back(
    bucket: Bucket, random_file: Make, small_parts: int, kind: str
) -> None:
    connection = bucket.address("")[0]
    real = connection.bulk_client

    def without(operation: str) -> Callable[..., Any]:
        return lambda ChecksumCRC32="", **others: getattr(real, operation)(**others)  # noqa: N803

    def unless_asked_for(operation: str, name: str, refuse: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **arguments: refuse() if name in arguments else getattr(real, operation)(**arguments)

    odd = {
        "takes any checksum": {"upload_part": without("upload_part")},
        "takes none": {"upload_part": unless_asked_for("upload_part", "ChecksumCRC32", _refused("BadDigest", 400))},
        "knows no checksums": {
            "create_multipart_upload": unless_asked_for(
                "create_multipart_upload", "ChecksumAlgorithm", _refused("NotImplemented", 501)
            )
        },
    }[kind]
    client = _Odd(real, **odd)
    connection.bulk_client = client
    file = random_file(PART + 1)
    sent = transfer.send(file, bucket, "x")
    assert sent.proof == "read-back"
    assert connection.verifies_checksums is False
    probes = [arguments for name, arguments in client.calls if name == "upload_part" and arguments["Body"] == b"x"]
    assert len(probes) <= 2
    parts = [arguments for name, arguments in client.calls if name == "upload_part"][len(probes) :]
    assert len(parts) == 2
    assert not any("ChecksumCRC32" in arguments for arguments in parts)
    assert multipart.unfinished(bucket) == []


def test_a_clock_that_the_server_refuses_is_not_taken_for_wrong_credentials() -> None:
    answer = "403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>"
    with pytest.raises(ClockError, match="this machine's clock is wrong") as caught, map_errors("s3://b", "x"):
        raise PermissionDeniedError(answer)
    assert caught.value.exit_code == 105


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ExpiredToken", 400, AuthError),
        ("AccessDenied", 403, AuthError),
        ("RequestTimeTooSkewed", 403, ClockError),
        ("NoSuchBucket", 404, NotFoundError),
        ("EntityTooLarge", 400, StorageError),
    ],
)
def test_a_refused_part_is_an_error_that_says_so(
    bucket: Bucket, random_file: Make, small_parts: int, code: str, status: int, error: type[StorageError]
) -> None:
    """Credentials that expire in the middle of an upload are one case; the parts that arrived stay."""
    connection = bucket.address("")[0]
    assert multipart.verifies_checksums(bucket, "x")
    real = connection.bulk_client
    refuse = _refused(code, status)

    def upload_part(**arguments: Any) -> Any:
        return refuse() if arguments["PartNumber"] > 1 else real.upload_part(**arguments)

    connection.bulk_client = _Odd(real, upload_part=upload_part)
    file = random_file(2 * PART + 1)
    with pytest.raises(error, match=code):
        transfer.send(file, bucket, "x")
    connection.bulk_client = real
    assert transfer.send(file, bucket, "x").resumed == PART


def test_a_server_that_fails_for_a_while_is_asked_again_until_the_time_is_over(
    bucket: Bucket, s3: Any, random_file: Make, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(multipart, "time", type("T", (), {"monotonic": clock, "sleep": clock.sleep}))
    connection = bucket.address("")[0]
    real = connection.bulk_client
    failures = iter([_refused("SlowDown", 503), _refused("InternalError", 500), _refused("RequestTimeout", 400)])

    def upload_part(**arguments: Any) -> Any:
        failing = next(failures, None)
        return failing() if failing else real.upload_part(**arguments)

    connection.bulk_client = _Odd(real, upload_part=upload_part)
    file = random_file(PART + 1)
    transfer.send(file, bucket, "x")
    assert 100.6 < clock.now < 101

    connection.bulk_client = _Odd(real, upload_part=_refused("ServiceUnavailable", 503))
    with pytest.raises(UnreachableError, match="503 ServiceUnavailable"):
        transfer.send(file, bucket, "y")
    assert clock.now - 101 < s3.settings.s3_timeout_s + multipart.LONGEST_WAIT_S
