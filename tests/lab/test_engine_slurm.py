"""The engine on the real SkyPilot and a real Slurm cluster: a job's whole life, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.rented import BATCH, LabClient

pytestmark = pytest.mark.slow

WHERE = ["--infra", "slurm", "--gpus", "L40:4", "--image", "none"]


def test_a_run_trains_ends_and_is_read_from_the_bucket_when_its_machine_is_gone(slurm_client: LabClient, name: str):
    shown = slurm_client.command(*slurm_client.launch_words(name, WHERE, "--yes"))
    assert "step     12/12" in shown.stderr and f"{name} succeeded" in shown.stdout
    up = slurm_client.status(name)
    assert (up["state"], up["step"]) == ("succeeded", 12)

    slurm_client.command("cloud", "down", name)

    gone = slurm_client.status(name)
    assert (gone["state"], gone["location"], gone["exit_code"]) == ("succeeded", None, 0)
    assert slurm_client.command("cloud", "logs", name).stdout.splitlines()[-1] == f"{name}: succeeded"
    assert "nothing to reap" in slurm_client.command("cloud", "reap", "--dry-run").stderr


def test_into_a_running_job_and_out_of_it_with_everything_saved(slurm_client: LabClient, name: str, tmp_path: Path):
    long = {"train.tokens": BATCH * 100_000, "train.checkpoint.every": 50_000, "train.validation.every": 50_000}
    slurm_client.command(*slurm_client.launch_words(name, WHERE, "--yes", "--detach", **long))
    slurm_client.until_step(name, 2)
    up = slurm_client.status(name)
    assert (up["state"], up["autodown_minutes"]) == ("running", 1) and up["location"]
    assert slurm_client.command("cloud", "ssh", name, "--", "echo", "two  words").stdout == "two  words\n"
    (tmp_path / "there").write_text("sawubona")
    slurm_client.command("cloud", "cp", str(tmp_path / "there"), f"{name}:there")
    slurm_client.command("cloud", "cp", f"{name}:there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "sawubona"

    assert json.loads(slurm_client.command("cloud", "cancel", name, "--json").stdout)["state"] == "stopped"

    record = slurm_client.record(name)
    assert record.state == "stopped" and record.step > 1
    assert record.step in slurm_client.saved(name)
    planted = slurm_client.environment["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in (slurm_client.lab.config.home / ".sky").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if planted in path.read_bytes()]
