"""Flags of a launch that stand for a key of the job."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("command", [("launch", "demo"), ("pretrain",), ("finetune",)])
def test_profile_is_a_key_of_the_job_that_runs(cli, command: tuple[str, ...]):
    ran = cli("cloud", *command, "--set", "train.seed=2", "--profile", "5", "--dry-run", "--json")
    task = json.loads(ran.out)["task"]
    assert task["run"].strip().endswith("--set train.seed=2 --set train.profile=5")


def test_a_profile_of_no_steps_is_refused(cli):
    assert cli("cloud", "pretrain", "--profile", "0", "--dry-run").code == 2
