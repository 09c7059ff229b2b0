"""Two Slurm nodes as one run: FSDP over gloo, one of them killed, continued on a single node; one stream."""

from __future__ import annotations

import os
import signal
from typing import Any

from bafogpt.runs import store as runs
from tests.lab import processes
from tests.lab.rented import LabClient
from tests.lab.test_engine_slurm import WHERE

STEPS = 150
RUN: dict[str, Any] = {
    "train.tokens": STEPS * 256,
    "train.checkpoint.every": 5,
    "train.validation.every": 100_000,
    "supervisor.storage_timeout_s": 120,
}


def supervisors(run: str) -> dict[int, int]:
    """The process of the run's supervisor on each node, by the node's rank."""
    found = {}
    for process in processes.everyone().values():
        words = process.command.split()
        if b"job" in words and run.encode() in words and b"python" in words[0]:
            variables = dict(each.partition(b"=")[::2] for each in process.environment.split(b"\0"))
            if rank := variables.get(b"SKYPILOT_NODE_RANK"):
                found[int(rank)] = process.pid
    return found


def test_two_nodes_one_of_which_is_killed_go_on_as_one_and_every_sample_comes_once(
    slurm_client: LabClient, name: str
) -> None:
    bafogpt, store = slurm_client.command, slurm_client.store
    bafogpt(*slurm_client.launch_words(name, WHERE, "--yes", "--nodes", "2", "--detach", **RUN))
    slurm_client.until_step(name, 20)
    both = supervisors(name)
    assert sorted(both) == [0, 1]
    newest = store.checkpoints(name).complete()[-1]
    shards = [file.object for file in newest.files if file.name.endswith(".safetensors")]
    assert sorted("-n1-" in shard for shard in shards) == [False, True]  # FSDP: a part of the weights on each node

    os.kill(both[1], signal.SIGKILL)

    slurm_client.until(lambda: not supervisors(name))
    slurm_client.until(lambda: slurm_client.status(name)["state"] not in ("running", "starting"))
    reached = store.load(name).step
    bafogpt("cloud", "down", name)
    assert 20 <= reached < STEPS
    bafogpt(*slurm_client.launch_words(name, WHERE, "--yes", "--resume", **RUN))
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
