"""Two nodes, one of which is a bad machine: the run ends, with the node and its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import ExitCode
from bafogpt.storage.bucket import Bucket
from tests.agent.test_multinode import HERE, Cluster
from tests.small_job import make_job


@pytest.fixture
def cluster(bucket: Bucket, s3: Any, tmp_path: Path) -> Iterator[Cluster]:
    bucket.put("data/x/manifest.json", b"{}")
    made = Cluster(bucket, s3.environment, tmp_path, (str(HERE / "multinode_worker.py"),))
    yield made
    made.end()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_node_without_its_gpus_ends_the_run(cluster: Cluster, bad: int):
    job = make_job(supervisor={"heartbeat_s": 0.2, "heartbeat_timeout_s": 30})
    nodes = [
        cluster.start(rank, 2, job, SKYPILOT_NUM_GPUS_PER_NODE="4" if rank == bad else "0", PATH="/usr/bin:/bin")
        for rank in (0, 1)
    ]
    for node in nodes if bad else nodes[:1]:  # SkyPilot ends the others when node 0 has ended before they joined
        assert node.wait() == ExitCode.MACHINE_UNFIT, node.output.read_text()
    record = cluster.store.load("run")
    said = "4 GPUs were asked for, and 0 are visible"
    assert record.state == "failed" and record.wants_another_machine
    assert record.message == (f"node 1: {said}" if bad else said)
    assert cluster.events("trainers_started") == []
    checked = {event.get("node", 0): event["fit"] for event in cluster.events("machine_checked")}
    assert checked[bad] is False
