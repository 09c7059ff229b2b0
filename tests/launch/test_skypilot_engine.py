"""The SkyPilot engine on an in-memory SkyPilot: whatever fails, no rented machine stays without an end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sky", reason="SkyPilot is not installed (the 'cloud' extra)")

from bafogpt.core.errors import AuthError, BafoError, ConfigError, ConflictError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch import code_snapshot, reap
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot import log_filter, task_config
from bafogpt.launch.engines.skypilot.client import Client
from bafogpt.launch.engines.skypilot.engine import SkyPilotEngine
from bafogpt.launch.engines.skypilot.errors import CapacityError, MachineError
from bafogpt.launch.engines.skypilot.status import RunStatusReader
from bafogpt.launch.engines.skypilot.teardown import Teardown
from bafogpt.launch.plan import Plan
from bafogpt.runs.store import RunRecord
from sky import exceptions
from tests.launch.fake_sky import FakeSky, Status
from tests.reports import synthetic
from tests.small_job import make_job


class Clock:
    """A clock that only sleep() moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def sky() -> FakeSky:
    return FakeSky()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(sky: FakeSky, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SkyPilotEngine:
    """An engine on the fake, with an S3 bucket that does not answer and keys for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-value")
    settings = Settings(
        home=str(tmp_path / "home"), bucket="s3://none", s3_endpoint="http://127.0.0.1:9", s3_timeout_s=0.1
    )
    client = Client(sdk=sky, jobs_sdk=sky, make_task=sky.make_task)
    return SkyPilotEngine(settings, client, clock, clock.sleep)


def plan(name: str = "r1", **options: Any) -> Plan:
    task = {
        "name": name,
        "run": f"exec bafogpt job run jobs/x.yaml --run {name}",
        "envs": {"BAFOGPT_BUCKET": "s3://none"},
        "secrets": {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HF_TOKEN": None},
        "resources": {"accelerators": "L40:4", "autostop": {"idle_minutes": 7, "down": True}},
    }
    return Plan(name=name, job=make_job(), task=task, infra="runpod", root=Path("/nowhere"), **options)


@pytest.fixture(autouse=True)
def _no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Launches here send no code."""
    monkeypatch.setattr(code_snapshot, "export", lambda root, into: tmp_path)


def test_a_launch_requests_autodown_and_verifies_it(engine: SkyPilotEngine, sky: FakeSky):
    run = engine.launch(plan(), resume=False)

    assert (run.state, run.autodown_minutes, run.location) == ("starting", 7, "RunPod CA")
    assert sky.clusters["r1"]["to_down"] and sky.clusters["r1"]["autostop"] == 7
    assert "autostop" not in sky.calls
    assert "queue" not in sky.calls and "queue_v2" not in sky.calls  # seconds each, for nothing


def test_a_launch_makes_skypilots_files_private(
    engine: SkyPilotEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".sky").mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(tmp_path))

    engine.launch(plan(), resume=False)

    assert (tmp_path / ".sky").stat().st_mode & 0o777 == 0o700
    task_config.make_private(tmp_path / "none" / ".sky")  # a missing HOME is no error


def test_a_lost_autodown_is_set_again(engine: SkyPilotEngine, sky: FakeSky):
    sky.lose_autodown = 2

    assert engine.launch(plan(), resume=False).autodown_minutes == 7
    assert sky.calls.count("autostop") == 2


def test_a_cluster_without_autodown_is_terminated(engine: SkyPilotEngine, sky: FakeSky):
    sky.lose_autodown = 99

    with pytest.raises(BafoError, match="did not keep the autodown of r1"):
        engine.launch(plan(), resume=False)
    assert sky.clusters == {}


@pytest.mark.parametrize("error", [RuntimeError("rsync failed"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failed_launch_returns_what_it_rented(engine: SkyPilotEngine, sky: FakeSky, error: BaseException):
    """SkyPilot itself leaves the cluster up "for debugging purposes" when files cannot be sent."""
    sky.faults["provisioned"] = [error]

    with pytest.raises((BafoError, KeyboardInterrupt)):
        engine.launch(plan(), resume=False)
    assert sky.clusters == {}


UNREADY = RuntimeError("Failed to run setup commands on an instance. (exit code 1). Error: no such METADATA")


def test_a_machine_that_cannot_be_set_up_is_returned_and_another_one_rented(
    engine: SkyPilotEngine, sky: FakeSky, capsys: pytest.CaptureFixture[str]
):
    sky.faults["provisioned"] = [UNREADY]

    engine.launch(plan(), resume=False)
    assert [each["status"] for each in sky.clusters.values()] == [Status.UP]
    assert sky.calls.count("launch") == 2 and sky.calls.count("down") == 1
    assert "could not set up the machine" in capsys.readouterr().err


def test_the_second_machine_that_cannot_be_set_up_is_the_last(engine: SkyPilotEngine, sky: FakeSky):
    sky.faults["provisioned"] = [UNREADY] * 2

    with pytest.raises(MachineError, match="no such METADATA"):
        engine.launch(plan(), resume=False)
    assert sky.calls.count("launch") == 2 and sky.clusters == {}
    engine.launch(plan(), resume=False)  # the name is free again
    assert sky.calls.count("launch") == 3


def test_down_is_called_until_the_cluster_is_gone(engine: SkyPilotEngine, sky: FakeSky, clock: Clock):
    sky.add("r1")
    sky.faults["down"] = [RuntimeError("500 Internal Server Error")] * 4

    engine.teardown.down("r1")

    assert sky.clusters == {} and sky.calls.count("down") == 5


def test_down_gives_up_after_its_timeout(engine: SkyPilotEngine, sky: FakeSky, clock: Clock):
    sky.add("r1")
    sky.faults["down"] = [RuntimeError("502 Bad Gateway")] * 99
    started = clock()

    with pytest.raises(BafoError, match=r"r1 is still up: .*502 Bad Gateway"):
        engine.teardown.down("r1")
    assert 200 < clock() - started <= 300


def test_down_does_not_retry_with_rejected_credentials(engine: SkyPilotEngine, sky: FakeSky):
    sky.add("r1")
    sky.faults["down"] = [RuntimeError("401 Unauthorized")] * 9

    with pytest.raises(AuthError):
        engine.teardown.down("r1")
    assert sky.calls.count("down") == 1


def test_cleaning_up_waits_for_the_server_and_keeps_a_running_job(engine: SkyPilotEngine, sky: FakeSky, clock: Clock):
    request = SimpleNamespace(cluster_name="r1", name="sky.launch", finished_at=None)
    other = SimpleNamespace(cluster_name="r2", name="sky.launch", finished_at=None)
    sky.requests += [other, request]

    def pass_time(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 1_000_020 and request.finished_at is None:
            request.finished_at = clock.now
            sky.add("r1", autostop=-1)
            sky.add_job("r1", Status.RUNNING)

    Teardown(client=engine.client, clock=clock, sleep=pass_time).clean_up("r1", 7)
    assert sky.clusters["r1"]["autostop"] == 7


def test_secrets_reach_the_task_and_no_file(engine: SkyPilotEngine, sky: FakeSky, tmp_path: Path):
    engine.launch(plan(), resume=False)

    assert ("AWS_SECRET_ACCESS_KEY", "planted-value") in sky.secrets
    assert [name for name, _ in sky.secrets] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]  # no HF_TOKEN here
    assert "planted-value" not in repr(sky.tasks)
    assert not any(b"planted-value" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_missing_key_and_a_local_bucket_are_refused_before_anything_is_rented(
    engine: SkyPilotEngine, sky: FakeSky, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AuthError, match="AWS_SECRET_ACCESS_KEY is not set"):
        engine.launch(plan(), resume=False)
    for settings in (Settings(), Settings(bucket="file:///tmp/x", s3_endpoint="")):
        with pytest.raises(ConfigError, match="a rented machine cannot reach it"):
            task_config.check_reachable(settings)
    assert sky.calls == []


@pytest.mark.parametrize("call", ["status", "cancel", "down", "shell"])
def test_an_unknown_run_is_not_found(engine: SkyPilotEngine, sky: FakeSky, call: str):
    with pytest.raises(RunNotFoundError, match="no run 'unknown'") as caught:
        getattr(engine, call)("unknown")
    assert caught.value.hint == "bafogpt cloud ls"
    assert sky.clusters == {}


def test_an_active_run_and_a_foreign_cluster_are_left_alone(engine: SkyPilotEngine, sky: FakeSky):
    sky.add("r1")
    sky.add_job("r1", Status.RUNNING)
    sky.add("r2", labels={}, last_creation_yaml="run: sleep 1")
    with pytest.raises(ConflictError, match="active already"):
        engine.launch(plan(), resume=True)
    with pytest.raises(ConflictError, match="not created by bafogpt"):
        engine.launch(plan("r2"), resume=False)
    assert set(sky.clusters) == {"r1", "r2"}


def test_a_gpu_without_an_offer_lists_those_with_one(engine: SkyPilotEngine, sky: FakeSky):
    sky.offered = {"L40": [1, 2, 8], "L40S": [4]}
    sky.faults["launch"] = [
        exceptions.ResourcesUnavailableError("Catalog does not contain any instances satisfying it")
    ]

    with pytest.raises(CapacityError, match="runpod has no L40:4; it has L40:1, L40:2, L40:8, L40S:4") as caught:
        engine.launch(plan(), resume=False)
    assert caught.value.hint == "--gpus L40S:4" and not LaunchRegistry(engine._settings).has("r1")


def test_logs_are_the_runs_own_lines(engine: SkyPilotEngine, sky: FakeSky):
    sky.add("r1")
    sky.add_job("r1", Status.SUCCEEDED)
    sky.output = [
        "\x1b[2m├── \x1b[0mWaiting\n\x1b[36m(r1, pid=7)\x1b[0m st",
        "ep 1\n(r1, pid=7) \n",
        "✓ Job finished\n",
    ]

    assert list(engine.logs("r1", follow=True)) == ["step 1", ""]
    assert list(log_filter.lines(["(head, rank=0, pid=7) a\n(worker1, rank=1, pid=8, ip=10.0.0.2) b"])) == ["a", "b"]


def test_logs_of_a_terminated_machine_that_skypilot_still_lists_come_from_the_bucket(
    sky: FakeSky, clock: Clock, tmp_path: Path
):
    """A real bucket has the log; SkyPilot still lists the machine, which does not answer any more."""
    run = synthetic.new(tmp_path)
    run.save(name="r1", state="failed")
    run.store.folder("r1").put("logs/0001-00000.log", b"step 1\nr1: failed\n")
    settings = Settings(home=str(tmp_path / "home"), bucket=f"file://{tmp_path}/bucket", s3_endpoint="")
    engine = SkyPilotEngine(settings, Client(sdk=sky, jobs_sdk=sky, make_task=sky.make_task), clock, clock.sleep)
    sky.add("r1")
    sky.add_job("r1", Status.FAILED)
    sky.faults["tail_logs"] = [RuntimeError("no route to host")]

    assert list(engine.logs("r1", follow=False)) == ["step 1", "r1: failed"]
    with pytest.raises(RunNotFoundError, match="unknown"):
        list(engine.logs("unknown", follow=False))


def test_a_broken_log_stream_is_resumed(engine: SkyPilotEngine, sky: FakeSky, clock: Clock):
    sky.add("r1")
    sky.add_job("r1", Status.RUNNING)
    sky.output = ["(r1, pid=7) one\n"]

    def grow(seconds: float) -> None:
        clock.now += seconds
        sky.output.append("(r1, pid=7) two\n")
        sky.jobs["r1"][0].status = Status.SUCCEEDED

    engine._sleep = grow
    assert list(engine.logs("r1", follow=True)) == ["one", "two"]


def test_a_terminating_machine_is_not_a_starting_one(
    engine: SkyPilotEngine, sky: FakeSky, monkeypatch: pytest.MonkeyPatch
):
    """Once autodown has begun, SkyPilot 0.14.1 shows the cluster as INIT and has no queue of it."""
    record = RunRecord(
        name="r1", trainer="pretrain", state="succeeded", created="", updated="1970-01-01T00:01:00.000+00:00"
    )
    monkeypatch.setattr(RunStatusReader, "record", lambda _, name: record)
    for launched, state in ((30.0, "succeeded"), (90.0, "starting")):
        sky.add("r1", Status.INIT, launched=launched)
        assert engine.status("r1").state == state


def test_cancel_stops_the_supervisor_first_and_uses_skypilot_after_the_grace_period(
    engine: SkyPilotEngine, sky: FakeSky, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    for listens in (True, False):
        sky.add("r1")
        sky.jobs.clear()
        sky.add_job("r1", Status.RUNNING)
        sky.calls.clear()

        def ask(name: str, seen: Any, listens: bool = listens) -> bool:
            if listens:
                sky.jobs["r1"][0].status = Status.FAILED  # exit code 103 is a failure to SkyPilot
            return True

        monkeypatch.setattr(engine, "_stop_supervisors", ask)
        assert engine.cancel("r1").state == "stopped"
        assert ("cancel" in sky.calls) is not listens


def test_a_managed_run_keeps_its_code_for_recoveries_until_the_controller_has_ended_it(
    engine: SkyPilotEngine, sky: FakeSky, clock: Clock
):
    job: dict[str, Any] = {"job_id": 3, "job_name": "r1", "status": Status.RUNNING, "submitted_at": 1.0}
    sky.managed.append(job)
    LaunchRegistry(engine._settings).write("r1", infra="runpod", managed=True)
    code = LaunchRegistry(engine._settings).code("r1")
    code.mkdir()

    def pass_time(seconds: float) -> None:
        assert code.exists()
        clock.now += seconds
        if clock.now > 1_000_020:
            job["status"] = Status.CANCELLED

    engine._sleep = pass_time
    engine.client.cancel_managed = lambda name, job_id: None  # type: ignore[method-assign]  # it takes its time
    assert engine.status("r1").state == "running" and engine.status("r1").managed

    engine.down("r1")

    assert clock.now > 1_000_020 and not code.exists() and not LaunchRegistry(engine._settings).has("r1")


def test_reap_finds_orphans_and_leaves_the_rest(engine: SkyPilotEngine, sky: FakeSky):
    hour, now = 3600.0, 1_000_000.0
    sky.add("fresh", Status.INIT, autostop=-1, launched=now - 60)
    sky.add("broken", Status.INIT, autostop=-1, launched=now - hour)
    sky.add("healthy", launched=now - 9 * hour)
    sky.add("naked", autostop=-1, launched=now - hour)
    sky.add("naked-idle", autostop=-1, launched=now - hour)
    sky.add("overdue", launched=now - 9 * hour)
    sky.add("just-ended", launched=now - 9 * hour)
    sky.add("theirs", autostop=-1, launched=0, labels={})
    sky.add("controllers", autostop=-1, launched=0, is_managed=True)
    for name in ("healthy", "naked"):
        sky.add_job(name, Status.RUNNING)
    sky.add_job("overdue", Status.FAILED, ended=now - hour)
    sky.add_job("just-ended", Status.SUCCEEDED, ended=now - 60)

    found = reap.find(engine.client, lambda name: None, now=lambda: now)

    assert {each.name: each.reason for each in found} == {
        "broken": "its launch failed",
        "naked": "no autodown",
        "naked-idle": "no autodown",
        "overdue": "its run is dead, and its autodown is overdue",
    }
    outcomes = {each.name: reap.end(engine.teardown, engine.down, each).outcome for each in found}
    assert outcomes.pop("naked") == "autodown restored" and set(outcomes.values()) == {"ended"}
    assert sky.clusters["naked"]["autostop"] == task_config.IDLE_MINUTES
    assert set(sky.clusters) == {"fresh", "healthy", "naked", "just-ended", "theirs", "controllers"}
    assert [each.name for each in reap.find(engine.client, lambda name: None, older_than_hours=5, now=lambda: now)] == [
        "healthy",
        "just-ended",
    ]
