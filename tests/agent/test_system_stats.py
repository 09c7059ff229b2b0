"""The machine's state: real numbers of this machine, a container's limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bafogpt.agent import system_stats
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.core import process
from bafogpt.reports.status import StatusReader
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.small_job import make_job


def test_a_measurement_of_this_machine_holds_what_the_machine_says(tmp_path: Path):
    now = [0.0]
    probe = system_stats.Probe(tmp_path, cgroup=tmp_path / "none", clock=lambda: now[0], gpus=lambda: [])
    now[0] = 2.0
    found = probe.measure()
    assert found["cpus"] == psutil.cpu_count()
    assert 0 <= found["cpu"] <= 1
    assert found["memory_total"] == psutil.virtual_memory().total
    assert 0 < found["memory_used"] < found["memory_total"]
    assert 0 < found["disk_used"] < found["disk_total"]
    assert found["sent_per_s"] >= 0 <= found["received_per_s"]


def test_in_a_container_its_own_limits_count_and_its_cache_does_not(tmp_path: Path):
    def say(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)

    say(memory_max="8000000000\n", memory_current="5000000000\n", memory_stat="anon 1\ninactive_file 2000000000\n")
    say(cpu_max="400000 100000\n", cpu_stat="usage_usec 1000000\nuser_usec 1\n")
    now = [10.0]
    probe = system_stats.Probe(tmp_path, cgroup=tmp_path, clock=lambda: now[0], gpus=lambda: [])
    now[0] = 12.0
    say(cpu_stat="usage_usec 7000000\nuser_usec 1\n")
    found = probe.measure()
    assert (found["memory_used"], found["memory_total"]) == (3_000_000_000, 8_000_000_000)
    assert (found["cpus"], found["cpu"]) == (4.0, 0.75)  # 6 CPU seconds of 2 s on 4 CPUs
    say(memory_max="max\n", cpu_max="max 100000\n")
    assert system_stats.memory(tmp_path)[1] == psutil.virtual_memory().total
    assert system_stats.cpu_quota(tmp_path) is None


def test_lines_come_until_the_end_with_attempt_node_and_step_and_a_failed_measurement_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    count = [0]

    def measure() -> dict[str, object]:
        count[0] += 1
        if count[0] == 2:
            raise OSError("the disk is gone")
        return {"cpu": 0.5}

    path = tmp_path / "system_stats.jsonl"
    log = system_stats.StatsLogger(path, attempt=3, more=lambda: {"step": 7}, every_s=0.001, measure=measure)
    log.start()
    assert process.wait_until(lambda: count[0] >= 5, timeout_s=10)
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= 3
    assert lines[0] == {"cpu": 0.5, "attempt": 3, "node": 1, "step": 7}


def test_the_supervisor_measures_its_machine_and_counts_dollars_while_it_works(
    supervise: Callable[..., ExitOutcome], bucket: Bucket
):
    supervise(make_job(supervisor={"system_stats_s": 0.05}))
    found = StatusReader(RunStore(bucket), "run").read()
    assert (found.state, found.training.step) == ("succeeded", 20)
    (machine,) = found.machines
    assert machine["attempt"] == 1 and machine["memory_total"] > 1e8 and machine["usd"] == 0
    assert abs(machine["time"] - time.time()) < 60
    assert len(RunStore(bucket).system_stats("run")) >= 2
