"""Every task file is SkyPilot's own: plain ``sky launch`` runs it, and ``cloud launch`` takes hardly longer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bafogpt.core import schema
from bafogpt.jobs import job
from tests.lab import pods
from tests.lab.config import ROOT, VENV
from tests.lab.rented import TINY, Rented

pytestmark = pytest.mark.slow

TASKS = sorted((ROOT / "sky").glob("*.yaml"))
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OVERHEAD_S = 5.0
AT_WORK = """
import json, sys
from sky.client import sdk
spans = [r.finished_at - r.created_at for r in sdk.api_status(all_status=True)
         if r.cluster_name == sys.argv[1] and r.name == "sky.launch" and r.finished_at]
print(json.dumps(spans))
"""
"""Seconds that SkyPilot's server was at work on the launches of a cluster."""


def plainly(rented: Rented, folder: Path, name: str, task: Path, *words: str) -> str:
    """``sky launch`` of a task file, with the values of its secrets in the environment."""
    names = ("BAFOGPT_BUCKET", "BAFOGPT_S3_ENDPOINT", *SECRETS)
    values = [f"{key}={rented.environment[key]}" for key in names]
    secrets = [word for key in SECRETS for word in ("--secret", key)]
    rented.names.append(name)
    launch = ("sky", "launch", "-y", "-c", name, *secrets, "--secret", "HF_TOKEN=none", *words, str(task))
    return rented.lab.run("env", "-C", str(folder), *values, *launch, timeout_s=900).stdout


@pytest.mark.parametrize("task", TASKS, ids=lambda path: path.stem)
def test_plain_sky_launch_runs_it(rented: Rented, name: str, task: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "jobs").mkdir(parents=True)
    changed = {**TINY, "train.model.checkpoint": "null"} if task.stem == "finetune" else TINY
    sets = [f"{key}={value}" for key, value in changed.items()]
    tiny = schema.to_dict(job.load(ROOT / "jobs" / f"{task.stem}.yaml", sets))
    (own / "jobs" / f"{task.stem}.yaml").write_text(json.dumps(tiny))

    where = ["--image-id", f"docker:{pods.image()}", "--infra", "runpod"]
    if task.stem == "finetune":
        where += ["--gpus", "L40:1"]  # the lab's RunPod has no A10
    log = plainly(rented, own, name, task, *where, "--env", "BAFOGPT_BUCKET", "--env", "BAFOGPT_S3_ENDPOINT")

    assert "Job finished (status: SUCCEEDED)" in log
    (run,) = (each for each in rented.store.names() if each.startswith(f"{task.stem}-"))
    assert rented.told(run) == (f"{run}: succeeded", 12)
    rented.until_gone(name)


def test_cloud_launch_takes_hardly_longer_than_plain_sky_launch_of_what_dry_run_prints(
    rented: Rented, name: str
) -> None:
    """Compared is what either client adds to the time that SkyPilot's server needs, which differs from pod to pod."""
    plain, ours = f"{name}-plain", f"{name}-ours"
    task = rented.folder / "task.yaml"
    task.write_text(rented.command(*rented.words(plain, "--dry-run")).stdout)
    added = {}
    for each in (plain, ours):
        began = time.monotonic()
        if each == plain:
            plainly(rented, ROOT, plain, task, "-d")
        else:
            rented.launch(ours, "-d")
        took = time.monotonic() - began
        (at_work,) = json.loads(rented.lab.run(str(VENV / "bin/python"), "-c", AT_WORK, each).stdout.splitlines()[-1])
        added[each] = took - at_work
        print(f"{each}: {took:.1f} s, the server {at_work:.1f} s of it")

    assert added[ours] - added[plain] <= OVERHEAD_S
    for each in (plain, ours):
        rented.until_gone(each, 400)
