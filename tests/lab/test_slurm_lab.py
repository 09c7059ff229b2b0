"""The Slurm lab carries the real SkyPilot: a cluster, ssh into it, a managed job, and nothing left of it."""

from __future__ import annotations

import uuid

import pytest

from tests.lab import slurm
from tests.lab.conftest import RunningLab
from tests.lab.place import VENV

L40 = {"infra": "slurm", "accelerators": "L40:4"}


@pytest.mark.slow  # test_nodes_slurm is what every change is held to
def test_a_task_runs_on_a_node_that_has_bafogpt_and_ssh_reaches_it(slurm_lab: RunningLab) -> None:
    name = f"smoke-{uuid.uuid4().hex[:6]}"
    say = "hostname; command -v bafogpt; bafogpt --version; echo gpus=$SKYPILOT_NUM_GPUS_PER_NODE"
    task = slurm_lab.task(name, L40, say)

    log = slurm_lab.sky("launch", "-y", "-c", name, "-i", "0", "--down", str(task), timeout_s=600)

    assert "Job finished (status: SUCCEEDED)" in log
    assert f"{VENV}/bin/bafogpt" in log
    assert "gpus=4" in log
    assert "1m (down)" in slurm_lab.sky("status", name)
    said = slurm_lab.run("ssh", "-o", "LogLevel=ERROR", name, "hostname").stdout.split()
    assert said[0] in ("n1", "n2")  # a remark of SkyPilot's proxy may follow
    slurm_lab.sky("down", "-y", name)
    jobs = slurm_lab.run("squeue", "-h", "-o", "%j %T").stdout.splitlines()
    assert not [job for job in jobs if job.startswith(name) and not job.endswith("COMPLETING")]


@pytest.mark.slow
def test_a_managed_job_recovers_from_the_loss_of_its_machine(slurm_lab: RunningLab) -> None:
    name = f"managed-{uuid.uuid4().hex[:6]}"
    first = slurm.F / "users" / f"{name}.first"
    body = f"if [ ! -e {first} ]; then touch {first}; scancel $SLURM_JOB_ID; sleep 600; fi; echo second time"
    task = slurm_lab.task(name, L40, body)

    slurm_lab.sky("jobs", "launch", "-y", "-n", name, str(task), timeout_s=900)

    row = next(line for line in slurm_lab.sky("jobs", "queue", "-a").splitlines() if name in line)
    assert "SUCCEEDED" in row
