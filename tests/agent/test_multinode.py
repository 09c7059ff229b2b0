"""Two nodes on one machine: real supervisors and trainers as processes, each with a disk of its own, a real S3 server.

They are killed, one at a time, and the run still ends with every sample consumed once, in order.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent.multinode.checkpoint_parts import CheckpointParts
from bafogpt.agent.multinode.heartbeat import Heartbeats, Nodes, NodeStatus
from bafogpt.core.errors import ExitCode, UsageError
from bafogpt.runs import store as runs
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import CheckpointFile
from tests.agent.cluster import Cluster
from tests.agent.multinode_worker import whole
from tests.agent.test_budget import Clock
from tests.small_job import make_job


@pytest.fixture
def cluster(bucket: Bucket, s3: Any, tmp_path: Path) -> Iterator[Cluster]:
    bucket.put("data/x/manifest.json", b"{}")
    with Cluster(bucket, s3.environment, tmp_path, "multinode_worker.py") as made:
        yield made


def two_node_job(steps: int = 30, **over: Any) -> Any:
    """Steps of 4 samples, a checkpoint every 5, one trainer a node."""
    quick = {"heartbeat_s": 0.2, "heartbeat_timeout_s": 20, "storage_timeout_s": 60, "max_restarts": 9}
    return make_job(train={"tokens": steps * 40}, supervisor={**quick, **over})


def assert_each_sample_once_in_order(cluster: Cluster, steps: int, tmp_path: Path) -> None:
    """By what the trainers said, step by step, and by what the last checkpoint holds; both unsorted."""
    curve = runs.curve(cluster.store.metrics("run"))
    assert [index for line in curve for index in line["consumed"]] == list(range(4 * steps))
    assert runs.sample_gaps(curve) == []
    store = cluster.store.checkpoints("run")
    assert [problem for each in store.complete() for problem in store.problems(each)] == []
    found = store.fetch_newest(tmp_path / "last")
    assert found is not None
    assert found[0].step == steps
    assert whole(found[1]) == list(range(4 * steps))


def test_two_nodes_train_as_one_and_each_sends_its_part(cluster: Cluster, tmp_path: Path):
    nodes = cluster.both(two_node_job())
    cluster.succeed(*nodes)
    assert_each_sample_once_in_order(cluster, 30, tmp_path)
    newest = cluster.store.checkpoints("run").complete()[-1]
    objects = {file.name: file.object for file in newest.files}
    assert set(objects) == {"checkpoint.json", "state-000.json", "state-001.json"}
    assert "-n1-" in objects["state-001.json"]
    assert "-n1-" not in objects["state-000.json"]
    assert [event["step"] for event in cluster.events("part_sent")] == [5, 10, 15, 20, 25, 30]
    assert {event.get("node", 0) for event in cluster.events("node_joined")} == {1}
    logs = cluster.store.logs("run")
    assert "attempt 1, 1 process(es) on each of 2 nodes" in logs
    assert "node 1: attempt 1" in logs
    assert not (tmp_path / "disk-0").exists()
    assert not (tmp_path / "disk-1").exists()
    assert cluster.bucket.list("runs/run/nodes/parts") == []
    generation = json.loads(cluster.bucket.get("runs/run/nodes/0001/0001.json"))
    assert (generation["resume_step"], generation["processes"]) == (None, [1, 1])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_trainer_killed_on_either_node_sends_all_back_to_the_newest_checkpoint(
    cluster: Cluster, victim: int, tmp_path: Path
):
    nodes = cluster.both(two_node_job(40))
    cluster.wait_for_step(12)
    (trainer,) = nodes[victim].trainers()
    trainer.kill()
    cluster.succeed(*nodes)
    assert_each_sample_once_in_order(cluster, 40, tmp_path)
    assert cluster.store.load("run").restarts == 1
    (restored,) = cluster.events("checkpoint_restored")
    assert restored["step"] >= 5
    assert [event["step"] for event in cluster.events("checkpoint_fetched")] == [None, restored["step"]]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_goes_and_is_started_anew_joins_again(cluster: Cluster, victim: int, tmp_path: Path):
    job = two_node_job(40)
    nodes = list(cluster.both(job))
    cluster.wait_for_step(12)
    nodes[victim].kill()
    nodes[victim] = cluster.start(victim, 2, job)
    cluster.succeed(*nodes)
    assert_each_sample_once_in_order(cluster, 40, tmp_path)
    assert cluster.store.load("run").attempts == (2 if victim == 0 else 1)


@pytest.mark.slow
def test_a_run_of_two_nodes_that_lost_both_goes_on_with_one(cluster: Cluster, tmp_path: Path):
    nodes = cluster.both(two_node_job(40))
    cluster.wait_for_step(17)
    for node in nodes:
        node.kill()
    cluster.succeed(cluster.start(0, 1, two_node_job(40)))
    assert_each_sample_once_in_order(cluster, 40, tmp_path)
    assert cluster.store.load("run").attempts == 2


@pytest.mark.slow
def test_a_trainer_that_hangs_on_one_node_is_found_by_the_other_and_says_where(cluster: Cluster, tmp_path: Path):
    nodes = cluster.both(two_node_job(20, hang_timeout_s=3), MULTINODE_WORKER="hang")
    cluster.succeed(*nodes)
    assert_each_sample_once_in_order(cluster, 20, tmp_path)
    assert len(cluster.events("trainers_hung")) == 1
    assert "threading.py" in nodes[1].output.read_text()  # where node 1's trainer waited


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_on_either_node_saves_and_ends_both(cluster: Cluster, asked: int, tmp_path: Path):
    nodes = cluster.both(two_node_job(400))
    cluster.wait_for_step(7)
    nodes[asked].process.send_signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [ExitCode.JOB_CANCELLED, ExitCode.JOB_CANCELLED]
    saved = cluster.store.checkpoints("run").complete()[-1]
    assert saved.samples == cluster.store.metrics("run")[-1]["samples"][1]
    assert cluster.store.load("run").state == "stopped"


def test_a_node_that_never_comes_ends_the_run_clearly(cluster: Cluster):
    node = cluster.start(0, 2, two_node_job(storage_timeout_s=3))
    assert node.wait() == ExitCode.JOB_FAILED
    assert cluster.store.load("run").message == "node 1 has sent no heartbeat for 3 s"


def test_a_node_whose_node_0_never_comes_ends_clearly(cluster: Cluster):
    node = cluster.start(1, 2, two_node_job(storage_timeout_s=3))
    assert node.wait() == ExitCode.JOB_FAILED
    assert "node 0 has sent no heartbeat for 3 s" in node.output.read_text()


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
    said = "4 GPUs requested, 0 visible"
    assert record.state == "failed" and record.wants_another_machine
    assert record.message == (f"node 1: {said}" if bad else said)
    assert cluster.events("trainers_started") == []
    checked = {event.get("node", 0): event["fit"] for event in cluster.events("machine_checked")}
    assert checked[bad] is False


def pair(bucket: Bucket, clock: Clock) -> tuple[Heartbeats, Heartbeats]:
    addresses = ("127.0.0.1", "127.0.0.1")
    first, second = (
        Heartbeats(bucket, 1, Nodes(rank, addresses), processes=1, heartbeat_s=1, clock=clock) for rank in range(2)
    )
    return first, second


def test_a_node_is_silent_when_others_could_have_heard_it(bucket: Bucket):
    clock = Clock()
    first, second = pair(bucket, clock)
    second.exchange()
    first.exchange()
    clock.now += 100  # the first node could not reach the bucket: no peer counts as silent
    assert first.silent(5) == []
    assert first.unread_s() == 100
    first.exchange()
    assert first.silent(5) == [1]
    second.exchange()
    first.exchange()
    assert first.silent(5) == []


def test_what_a_node_tells_is_heard_once_and_whole(bucket: Bucket):
    first, second = pair(bucket, Clock())
    first.publish(phase="restoring", generation=3, resume_step=40)
    first.exchange()
    second.exchange()
    heard = second.status_of(0)
    assert isinstance(heard, NodeStatus)
    assert (heard.phase, heard.generation, heard.resume_step) == ("restoring", 3, 40)
    bucket.put("nodes/0001/node-0.json", b"{half")
    second.exchange()
    assert second.status_of(0) == heard


def test_a_checkpoint_s_parts_are_there_when_all_nodes_lists_are(bucket: Bucket):
    parts = CheckpointParts(bucket)
    files = [CheckpointFile(f"rank-{rank}", 1, "d", f"step-00000005/x/rank-{rank}", "e") for rank in range(4)]
    parts.put("0001-0001", 5, 1, tuple(files[1:2]))
    assert parts.get("0001-0001", 5, 3) is None
    parts.put("0001-0001", 5, 2, tuple(files[2:]))
    assert parts.get("0001-0001", 5, 3) == tuple(files[1:])
    assert parts.get("0001-0002", 5, 3) is None  # of another start of the trainers
    parts.clear("0001-0001", 5)
    assert parts.get("0001-0001", 5, 3) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"SKYPILOT_NUM_NODES": "2"},
        {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "a\nb"},
        {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "a"},
        {"SKYPILOT_NUM_NODES": "two", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "a\nb"},
    ],
)
def test_variables_that_do_not_fit_together_are_refused(wrong: dict[str, str]):
    with pytest.raises(UsageError, match="are inconsistent"):
        Nodes.from_environment(wrong)


def test_skypilot_s_variables_say_which_node_this_is():
    said = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n"}
    assert Nodes.from_environment(said) == Nodes(1, ("10.0.0.1", "10.0.0.2"))
    assert Nodes.from_environment({}) == Nodes()
    assert Nodes.from_environment({"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}).count == 1
