"""Two nodes of the real trainer: FSDP over gloo, killed, and gone on with on one node; the stream is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core import schema
from bafogpt.data import prepare, tokenizer
from bafogpt.jobs.job import Job
from bafogpt.runs import store
from bafogpt.storage.bucket import Bucket
from tests.agent.cluster import Cluster

STEPS = 24
TRAIN: dict[str, Any] = {
    "tokens": STEPS * 256,
    "precision": "32-true",
    "activation_checkpointing": "none",
    "data": {"path": "data/starter", "sequence_length": 32, "cache_gb": 0},
    "model": {
        "overrides": {
            "n_layer": 2,
            "n_embd": 64,
            "n_head": 2,
            "n_query_groups": 1,
            "head_size": 32,
            "intermediate_size": 128,
        }
    },
    "batch": {"tokens": 256, "micro_batch_size": 2},
    "schedule": {"warmup_steps": 2},
    "validation": {"every": 0},
    "checkpoint": {"every": 4},
}


@pytest.fixture
def cluster(bucket: Bucket, s3: Any, tmp_path: Path) -> Iterator[Cluster]:
    prepare.prepare(["starter"], tokenizer=tokenizer.load("bytes"), out=bucket.child("data/starter"))
    with Cluster(bucket, s3.environment, tmp_path) as made:
        yield made


def job(**train: Any) -> Job:
    supervisor = {
        "processes": 1,
        "flush_s": 0.3,
        "heartbeat_s": 0.3,
        "storage_timeout_s": 90,
        "heartbeat_timeout_s": 15,
    }
    values = {"train": schema.merge(TRAIN, train), "supervisor": supervisor}
    return schema.build(Job, values, where="test")


@pytest.mark.slow
def test_two_nodes_killed_once_go_on_with_one_and_the_stream_is_that_of_a_run_never_stopped(
    cluster: Cluster, s3: Any, tmp_path: Path
):
    nodes = cluster.both(job())
    cluster.wait_for_step(6)
    (trainer,) = nodes[1].trainers()
    trainer.kill()
    cluster.wait_until(lambda: bool(cluster.events("checkpoint_restored")), "second start of the trainers")
    cluster.wait_for_step(14)
    for node in nodes:
        node.kill()
    saved = cluster.store.checkpoints("run").complete()[-1]
    assert saved.step >= 4
    shards = [file.object for file in saved.files if file.name.endswith(".safetensors")]
    assert sorted("-n1-" in name for name in shards) == [False, True]  # a shard of each node
    cluster.succeed(cluster.start(0, 1, job()))
    curve = store.curve(cluster.store.metrics("run"))
    assert [line["samples"] for line in curve] == [[8 * step, 8 * step + 8] for step in range(STEPS)]

    alone = tmp_path / "alone"
    alone.mkdir()
    with Cluster(cluster.bucket.child("alone"), s3.environment, alone) as whole_run:
        prepare.prepare(["starter"], tokenizer=tokenizer.load("bytes"), out=whole_run.bucket.child("data/starter"))
        whole_run.succeed(whole_run.start(0, 1, job()))
    truth = {line["step"]: line["loss"] for line in store.curve(whole_run.store.metrics("run"))}
    assert {line["step"]: line["loss"] for line in curve} == pytest.approx(truth, rel=1e-4)
