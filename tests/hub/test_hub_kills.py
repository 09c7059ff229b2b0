"""``kill -9`` during a push and a pull, with the Hub and with S3: each resumes and ends byte-equal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer import PART_BYTES
from bafogpt.storage.transfer.download import RANGE_BYTES, RANGES_IN_FLIGHT

from ..conftest import S3
from .conftest import REPO, content, write_model
from .relay import Relay
from .server import Hub
from .state import Gate

ROOT = Path(__file__).parents[2]
OVERHEAD = 1.01
"""Headers, listings and signatures beside the content."""


@dataclass(frozen=True)
class Command:
    """``bafogpt storage …`` in a process of its own."""

    environment: dict[str, str]

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "bafogpt.cli.main", "storage", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path) -> str:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    def killed_after(self, line: Gate, count: int, *words: str | Path) -> None:
        """Run until ``count`` bytes have passed, then ``kill -9``."""
        line.hold_after(count)
        with self.start(*words) as process:
            assert line.held.wait(120), "it ended before it could be killed"
            assert process.poll() is None
            process.kill()
        line.release()
        time.sleep(0.2)  # what the dead process had sent is still read


@pytest.fixture
def relay(s3: S3) -> Iterator[Relay]:
    with Relay(s3.environment["AWS_ENDPOINT_URL"]).running() as running:
        yield running


@pytest.fixture
def command(s3: S3, relay: Relay, tmp_path: Path) -> Command:
    url = {"AWS_ENDPOINT_URL": relay.url, "BAFOGPT_S3_ENDPOINT": relay.url, "BAFOGPT_HOME": str(tmp_path / "home")}
    return Command({**s3.environment, **url, "BAFOGPT_DEBUG": ""})


@pytest.fixture(
    params=[pytest.param(24_000_000, id="24MB"), pytest.param(600_000_000, id="600MB", marks=pytest.mark.slow)]
)
def size(request: pytest.FixtureRequest) -> int:
    """Of each of the model's two large files."""
    found: int = request.param
    return found


@pytest.fixture
def big(tmp_path: Path, size: int) -> Path:
    write_model(tmp_path / "big", size)
    return tmp_path / "big"


def test_a_push_to_the_hub_and_a_pull_killed_twice_each(
    command: Command, hub: Hub, big: Path, size: int, tmp_path: Path
):
    hub.part_bytes, hub.large_bytes = 4 << 20, 10_000_000
    for count in (size * 3 // 4, size):  # within the first file, then within the second
        command.killed_after(hub, count, "push", big, REPO)
        assert len(hub.repos["zulu/model"].commits) == 1, "a partial upload is visible"
    command.run("push", big, REPO)
    assert hub.up <= 2 * size + 2 * hub.part_bytes

    for count in (size * 3 // 4, size):
        command.killed_after(hub, count, "pull", REPO, tmp_path / "back")
    command.run("pull", REPO, tmp_path / "back")
    assert hub.down <= 2 * size + 2 * RANGES_IN_FLIGHT * RANGE_BYTES
    assert content(tmp_path / "back") == content(big)


def test_a_push_to_a_bucket_and_a_pull_killed_twice_each(
    command: Command, relay: Relay, bucket: Bucket, big: Path, size: int, tmp_path: Path
):
    url = f"{bucket.url}/model"
    for count in (size * 3 // 4, size):
        command.killed_after(relay, count, "push", big, url)
    command.run("push", big, url)
    assert relay.up <= OVERHEAD * (2 * size + 2 * PART_BYTES)
    assert "verified" in command.run("verify", url)

    relay.down = 0
    for count in (size * 3 // 4, size):
        command.killed_after(relay, count, "pull", url, tmp_path / "back")
    command.run("pull", url, tmp_path / "back")
    assert relay.down <= OVERHEAD * (2 * size + 2 * PART_BYTES)
    assert RANGES_IN_FLIGHT * RANGE_BYTES <= PART_BYTES
    assert content(tmp_path / "back") == content(big)
