"""The reader behind a line that harms what goes through it."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bafogpt.core.errors import CorruptError, UnreachableError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.stream import Samples, TokenStream, prefetch
from tests.faults.proxy import Fault, Proxy, Request

Write = Callable[..., Any]
TIMEOUT_S = 1.5


@dataclasses.dataclass
class Line:
    """A dataset of 40 blocks behind a proxy."""

    proxy: Proxy
    samples: Samples
    tokens: Any
    shards: list[str]

    def read(self) -> None:
        """Everything, in order, compared with what was written."""
        for index, sample in prefetch(self.samples, range(self.samples.count)):
            assert np.array_equal(sample, self.tokens[index * 100 : index * 100 + 101])


@pytest.fixture
def line(s3: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    path = f"{s3.url}/{uuid.uuid4().hex}"
    manifest, tokens = write(Bucket.open(path, s3.settings), [4000], shard_bytes=2000, block_bytes=200)
    with Proxy(s3.environment["AWS_ENDPOINT_URL"]) as proxy:
        settings = dataclasses.replace(s3.settings, s3_endpoint=proxy.url, s3_timeout_s=TIMEOUT_S)
        stream = TokenStream(Bucket.open(path, settings), manifest, "train")
        yield Line(proxy, Samples(stream, 100), tokens, [shard.object for shard in manifest.splits["train"].shards])


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("status", status=500),
        Fault("hang-up"),
        Fault("reset"),
        Fault("truncate"),
        Fault("flip"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_a_fault_now_and_then_is_not_seen(line: Line, fault: Fault) -> None:
    asked: dict[str, int] = {}

    def every_eighth(request: Request) -> Fault | None:
        asked["so far"] = asked.get("so far", 0) + 1
        return fault if asked["so far"] % 8 == 3 else None

    line.proxy.decide = every_eighth
    line.read()
    assert sum(line.proxy.faults.values()) >= 5


def test_a_connection_that_falls_silent_is_left_for_another_in_time(line: Line) -> None:
    silent = iter([Fault("stall", seconds=20)])
    line.proxy.decide = lambda request: next(silent, None)
    began = time.monotonic()
    line.read()
    assert time.monotonic() - began < 10, "the stall alone would last 20 s"
    assert line.proxy.faults["stall down"] == 1


def test_a_server_that_never_answers_is_unreachable_once_the_time_is_over(line: Line) -> None:
    line.proxy.decide = lambda request: Fault("status", status=503)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="503"):
        next(prefetch(line.samples, [0]))
    assert time.monotonic() - began < 10 * TIMEOUT_S


def test_persistent_damage_is_corrupt_and_names_shard_and_range(line: Line) -> None:
    line.proxy.decide = lambda request: Fault("flip") if line.shards[1] in request.path else None
    good = []
    with pytest.raises(CorruptError, match=rf"{line.shards[1]} bytes 0-199: does not match its hash"):
        for index, _ in prefetch(line.samples, range(40)):
            good.append(index)
    assert good == list(range(9)), "the tenth ends with the first token of the second shard"
