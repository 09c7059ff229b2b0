"""Two Slurm nodes as one run: FSDP over gloo, one of them killed, gone on with on a single node; one stream."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from bafogpt.runs import store as runs
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.lab import processes
from tests.lab.conftest import RunningLab
from tests.lab.test_engine_slurm import Command, bafogpt, launch, status

STEPS = 150
RUN: dict[str, Any] = {
    "train.tokens": STEPS * 256,
    "train.checkpoint.every": 5,
    "train.validation.every": 100_000,
    "supervisor.max_restarts": 0,
    "supervisor.storage_timeout_s": 120,
}

__all__ = ["bafogpt"]


@pytest.fixture
def name(slurm_lab: RunningLab) -> Iterator[str]:
    """A run's name; whatever the test leaves of it is taken down."""
    found = f"two-{uuid.uuid4().hex[:6]}"
    yield found
    slurm_lab.sky("down", "-y", found, check=False)


def supervisors(run: str) -> dict[int, int]:
    """Process of the run's supervisor on each node, by the node's rank."""
    found = {}
    for process in processes.everyone().values():
        words = process.command.split()
        if b"job" in words and run.encode() in words and b"python" in words[0]:
            variables = dict(each.partition(b"=")[::2] for each in process.environment.split(b"\0"))
            if rank := variables.get(b"SKYPILOT_NODE_RANK"):
                found[int(rank)] = process.pid
    return found


def until(what: Any, timeout_s: float = 300.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return found


def test_two_nodes_one_of_which_is_killed_go_on_as_one_and_every_sample_comes_once(
    bafogpt: Command, name: str, s3: Any, slurm_lab: RunningLab
) -> None:
    store = RunStore(Bucket.open(s3.url, s3.settings))
    launch(bafogpt, name, "--nodes", "2", "--detach", **RUN)
    until(lambda: (record := store.find(name)) and record.step >= 20)
    both = supervisors(name)
    assert sorted(both) == [0, 1]
    newest = store.checkpoints(name).complete()[-1]
    shards = [file.object for file in newest.files if file.name.endswith(".safetensors")]
    assert sorted("-n1-" in shard for shard in shards) == [False, True]  # FSDP: a part of the weights on each node

    os.kill(both[1], signal.SIGKILL)

    until(lambda: not supervisors(name))
    until(lambda: status(bafogpt, name)["state"] not in ("running", "starting"))
    reached = store.load(name).step
    bafogpt("cloud", "down", name)
    assert 20 <= reached < STEPS
    launch(bafogpt, name, "--resume", **RUN)
    bafogpt("cloud", "down", name)

    restored = [event["step"] for event in store.events(name) if event["event"] == "checkpoint_restored"]
    print(f"killed at step {reached}, resumed on one node from {restored}")
    assert restored and restored[-1] % 5 == 0
    curve = runs.curve(store.metrics(name))
    assert [line["samples"] for line in curve] == [[8 * step, 8 * step + 8] for step in range(STEPS)]
    assert "each once and in order" in bafogpt("runs", "verify", name).stdout
    record = store.load(name)
    assert (record.state, record.attempts, record.step) == ("succeeded", 2, STEPS)
    assert bafogpt("cloud", "logs", name).stdout.splitlines()[-1] == f"{name}: succeeded"
    assert not supervisors(name)
