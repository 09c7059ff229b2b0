"""The engine on a real SkyPilot and a real Slurm cluster: a job's whole life, by the commands that a person types."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bafogpt.storage.bucket import Bucket
from tests.lab.conftest import RunningLab
from tests.lab.place import ROOT, VENV, outer_environment

pytestmark = pytest.mark.slow

MODEL = "{n_layer: 2, n_embd: 64, n_head: 2, n_query_groups: 1, head_size: 32, intermediate_size: 128}"
TINY = {
    "train.tokens": 12 * 256,
    "train.precision": "32-true",
    "train.activation_checkpointing": "none",
    "train.data.path": "data/starter",
    "train.data.sequence_length": 32,
    "train.model.overrides": MODEL,
    "train.batch.tokens": 256,
    "train.batch.micro_batch_size": 2,
    "train.checkpoint.every": 6,
    "train.validation.every": 6,
    "train.validation.samples": 8,
    "train.schedule.warmup_steps": 2,
    "supervisor.flush_s": 1,
    "supervisor.processes": 1,
    "supervisor.require_gpus": "false",  # the nodes' GPUs are names
}
"""``jobs/pretrain.yaml`` cut down to 12 steps of a model of 0.1 M parameters."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bafogpt(s3: Any, starter: Bucket, tmp_path: Path, slurm_lab: RunningLab) -> Command:
    """``bafogpt("cloud", "ls")`` in the lab's HOME, with the session's bucket and data in it."""
    environment = outer_environment() | dict(slurm_lab.environment) | s3.environment
    environment["BAFOGPT_HOME"] = str(tmp_path / "home")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:  # daemons would hold pipes
            code = subprocess.run(
                [str(VENV / "bin/bafogpt"), *words],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=900,
                check=False,
            ).returncode
        done = subprocess.CompletedProcess(words, code, (tmp_path / "out").read_text(), (tmp_path / "err").read_text())
        assert code == 0, f"{words}: {code}\n{done.stdout}\n{done.stderr}\n{slurm_lab.provisioning()}"
        return done

    return run


@pytest.fixture
def name(slurm_lab: RunningLab) -> Iterator[str]:
    """A run's name; whatever the test leaves of it is taken down."""
    found = f"lab-{uuid.uuid4().hex[:6]}"
    yield found
    slurm_lab.sky("down", "-y", found, check=False)


def launch(bafogpt: Command, name: str, *more: str, **over: Any) -> subprocess.CompletedProcess[str]:
    sets = [word for key, value in {**TINY, **over}.items() for word in ("--set", f"{key}={value}")]
    where = ("--infra", "slurm", "--gpus", "L40:4", "--image", "none")
    return bafogpt("cloud", "launch", "pretrain", *where, *sets, "--name", name, "--yes", *more)


def status(bafogpt: Command, name: str) -> dict[str, Any]:
    return dict(json.loads(bafogpt("cloud", "status", name, "--json").stdout))


def test_a_run_trains_ends_and_is_read_from_the_bucket_when_its_machine_is_gone(bafogpt: Command, name: str):
    shown = launch(bafogpt, name)
    assert "step     12/12" in shown.stderr and f"{name} succeeded" in shown.stdout
    up = status(bafogpt, name)
    assert (up["state"], up["step"]) == ("succeeded", 12)
    assert up["place"] is None or up["autodown_minutes"] is not None

    bafogpt("cloud", "down", name)

    gone = status(bafogpt, name)
    assert (gone["state"], gone["place"], gone["exit_code"]) == ("succeeded", None, 0)
    assert bafogpt("cloud", "logs", name).stdout.splitlines()[-1] == f"{name}: succeeded"
    assert "nothing to reap" in bafogpt("cloud", "reap", "--dry-run").stderr


def test_into_a_running_job_and_out_of_it_with_everything_saved(
    bafogpt: Command, name: str, tmp_path: Path, s3: Any, slurm_lab: RunningLab
):
    long = {"train.tokens": 256 * 100_000, "train.checkpoint.every": 50_000, "train.validation.every": 50_000}
    launch(bafogpt, name, "--detach", **long)
    deadline = time.monotonic() + 300
    while not (status(bafogpt, name).get("step") or 0) > 1:
        assert time.monotonic() < deadline
    assert bafogpt("cloud", "ssh", name, "--", "echo", "two  words").stdout == "two  words\n"
    (tmp_path / "there").write_text("sawubona")
    bafogpt("cloud", "cp", str(tmp_path / "there"), f"{name}:there")
    bafogpt("cloud", "cp", f"{name}:there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "sawubona"

    assert json.loads(bafogpt("cloud", "cancel", name, "--json").stdout)["state"] == "stopped"

    saved = Bucket.open(f"{s3.url}/runs/{name}/checkpoints", s3.settings)
    record = json.loads(Bucket.open(f"{s3.url}/runs/{name}", s3.settings).get("run.json"))
    assert record["state"] == "stopped" and record["step"] > 1
    assert any(entry.path.endswith(f"step-{record['step']:08d}.json") for entry in saved.list(""))
    planted = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    books = Path(slurm_lab.environment["HOME"]) / ".sky"
    assert not [path for path in books.rglob("*") if path.is_file() and planted in path.read_bytes()]
