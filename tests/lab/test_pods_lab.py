"""The pods lab serves the real SkyPilot: a pod of our image at RunPod's price, ssh, and down."""

from __future__ import annotations

import time
import uuid

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
