"""The pods lab carries the real SkyPilot: a pod of our image at RunPod's price, ssh, and the pod gone by itself."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.lab import pods
from tests.lab.conftest import RunningLab


def resources() -> dict[str, str]:
    return {"infra": "runpod", "accelerators": "L40:4", "image_id": f"docker:{pods.image()}"}


def wait_gone(name: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(pod["name"].startswith(name) for pod in pods.control()["pods"]):
            return True
        time.sleep(2)
    return False


def test_a_task_runs_in_a_pod_of_our_image_for_its_price_and_down_removes_it(pods_lab: RunningLab) -> None:
    name = f"smoke-{uuid.uuid4().hex[:6]}"
    task = pods_lab.task(name, resources(), "bafogpt --version; echo gpus=$SKYPILOT_NUM_GPUS_PER_NODE")

    log = pods_lab.sky("launch", "-y", "-c", name, "-i", "0", "--down", str(task), timeout_s=900)

    assert "4.56" in log
    assert "gpus=4" in log
    assert "Job finished (status: SUCCEEDED)" in log
    (pod,) = (pod for pod in pods.control()["pods"] if pod["name"].startswith(name))
    assert pod["costPerHr"] == 4.56
    assert pods_lab.run("ssh", "-o", "LogLevel=ERROR", name, "hostname").stdout.strip() == pod["id"]
    pods_lab.sky("down", "-y", name)
    assert wait_gone(name, 20)


@pytest.mark.slow
def test_a_pod_terminates_itself_after_its_job(pods_lab: RunningLab) -> None:
    name = f"autodown-{uuid.uuid4().hex[:6]}"

    pods_lab.sky(
        "launch", "-y", "-c", name, "-i", "0", "--down", str(pods_lab.task(name, resources(), "true")), timeout_s=900
    )

    assert wait_gone(name, 180)


@pytest.mark.slow
def test_capacity_fails_over_to_another_place(pods_lab: RunningLab) -> None:
    name = f"failover-{uuid.uuid4().hex[:6]}"
    pods.control({"reset": True})
    pods.control({"fault": {"kind": "capacity", "op": "podFindAndDeployOnDemand", "times": 2}})

    pods_lab.sky("launch", "-y", "-c", name, "--down", str(pods_lab.task(name, resources(), "true")), timeout_s=900)

    rents = [entry for entry in pods.control()["log"] if entry.get("name", "").startswith(name)]
    assert [entry["fault"] for entry in rents] == ["capacity", "capacity", None]
    assert len({entry["countryCode"] for entry in rents}) == 3
    pods_lab.sky("down", "-y", name)
    assert wait_gone(name, 20)
