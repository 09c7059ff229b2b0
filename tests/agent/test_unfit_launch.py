"""A launch whose machine is unfit, by the command that a person types, against SkyPilot's surface in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sky", reason="SkyPilot is not installed (the 'cloud' extra)")

from sky.jobs.recovery_strategy import EagerFailoverStrategyExecutor, FailoverStrategyExecutor
from sky.utils import schemas

from bafogpt.cli import main
from bafogpt.core.errors import ExitCode
from bafogpt.core.settings import Settings
from bafogpt.launch import code_snapshot, engines
from bafogpt.launch.engines.skypilot import task_config
from bafogpt.launch.engines.skypilot.client import Client
from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from tests.launch.fake_sky import FakeSky, Status
from tests.launch.test_skypilot_engine import plan

REASON = "the NVIDIA driver is 550.54.15, and torch's CUDA 13.0 needs 580.65.06 or newer"


class Account:
    """A cloud whose machines are unfit but for those whose number, from 0, is in ``fit``."""

    def __init__(self, bucket: Bucket, fit: set[int]) -> None:
        self.sky = FakeSky(on_launch=self._supervise)
        self.up_at_launch: list[list[str]] = []
        self._store, self._fit = RunStore(bucket), fit

    def _supervise(self) -> None:
        """Write down what a supervisor would."""
        number = len(self.up_at_launch)
        self.up_at_launch.append(list(self.sky.clusters))
        old = self._store.find("zulu") or RunRecord(
            name="zulu", trainer="pretrain", state="running", created="", updated=""
        )
        machine = {} if number in self._fit else {"unfit": REASON, "hint": "--infra OTHER"}
        record = replace(
            old, machines=[*old.machines, machine], state="failed" if machine else "succeeded", message=REASON
        )
        self._store.save(record)
        self.sky.output = [f"(zulu, pid=7) error: {REASON}\n"]

    def sleep(self, _: float) -> None:
        for job in self.sky.jobs.get("zulu", []):
            job.status = Status.FAILED if self._store.load("zulu").state == "failed" else Status.SUCCEEDED


@pytest.fixture
def launch(
    bucket: Bucket, s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Account, str]]:
    def run(*words: str, fit: set[int]) -> tuple[int, Account, str]:
        for name, value in {**s3.environment, "BAFOGPT_BUCKET": bucket.url, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(code_snapshot, "export", lambda root, into: tmp_path)
        account = Account(bucket, fit)
        settings = Settings(
            home=str(tmp_path / "home"), bucket=bucket.url, s3_endpoint=s3.environment["BAFOGPT_S3_ENDPOINT"]
        )
        client = Client(sdk=account.sky, jobs_sdk=account.sky, make_task=account.sky.make_task)
        engine = SkyPilotEngine(settings, client, sleep=account.sleep)
        monkeypatch.setattr(engines, "engine_for", lambda *_: engine)
        code = main.main(["cloud", "launch", "pretrain", "--infra", "slurm", "--name", "zulu", "--yes", *words])
        return code, account, capsys.readouterr().err

    return run


Launch = Callable[..., tuple[int, Account, str]]


def test_an_unfit_machine_is_given_back_at_once_and_another_one_is_tried(launch: Launch):
    code, account, told = launch(fit={1})

    assert code == 0
    assert account.up_at_launch == [[], []]  # the first was gone before the second was rented
    assert account.sky.calls.count("down") == 1
    assert REASON in told and "renting another one" in told


def test_the_third_unfit_machine_in_a_row_is_the_last(launch: Launch):
    code, account, told = launch(fit=set())

    assert code == ExitCode.JOB_FAILED
    assert len(account.up_at_launch) == 3 and account.up_at_launch[-1] == []
    assert "zulu failed with exit code 100" in told


def test_a_detached_launch_leaves_the_teardown_to_the_machine(launch: Launch):
    code, account, _ = launch("--detach", fit=set())

    assert code == 0 and len(account.up_at_launch) == 1
    assert account.sky.clusters["zulu"]["to_down"]  # a minute after its job


def test_a_managed_run_goes_on_elsewhere_after_the_exit_code_of_an_unfit_machine_and_after_no_other(tmp_path: Path):
    resources = task_config.rented(plan(managed=True), tmp_path)["resources"]
    assert resources["job_recovery"] == {"strategy": "EAGER_NEXT_REGION", "recover_on_exit_codes": [105]}
    assert "job_recovery" not in task_config.rented(plan(), tmp_path)["resources"]
    known = schemas.get_resources_schema()["properties"]["job_recovery"]
    assert "recover_on_exit_codes" in str(known)
    own = plan(managed=True)
    own.task["resources"]["job_recovery"] = "FAILOVER"
    assert task_config.rented(own, tmp_path)["resources"]["job_recovery"] == "FAILOVER"


def test_skypilots_own_strategy_terminates_the_machine_before_it_rents_another_and_the_other_one_would_not():
    """The pinned SkyPilot's classes, without a controller around them."""

    def recover(kind: Any) -> list[str]:
        calls: list[str] = []
        strategy = object.__new__(kind)
        region = SimpleNamespace(cloud="RunPod", region="CA", zone=None, copy=lambda **_: None)
        strategy._launched_resources = region
        strategy.dag = SimpleNamespace(tasks=[SimpleNamespace(resources=None, set_resources=lambda _: None)])
        strategy.recover_on_exit_codes = task_config.RECOVERY["recover_on_exit_codes"]
        strategy.restart_cnt_on_failure = strategy.max_restarts_on_errors = 0
        assert strategy.should_restart_on_failure([105, 137])
        assert not strategy.should_restart_on_failure([100])

        async def launch(**_: Any) -> float:
            calls.append("launch")
            return 1.0

        async def cancel() -> None:
            calls.append("cancel")

        strategy._launch, strategy._try_cancel_jobs = launch, cancel
        strategy._cleanup_cluster = lambda: calls.append("terminate")
        asyncio.run(strategy.recover())
        return calls

    strategies = {"FAILOVER": FailoverStrategyExecutor, "EAGER_NEXT_REGION": EagerFailoverStrategyExecutor}
    assert recover(strategies[str(task_config.RECOVERY["strategy"])]) == ["terminate", "launch"]
    assert recover(FailoverStrategyExecutor) == ["cancel", "launch"]
