"""The local engine: detached, with SkyPilot's environment, and no process left behind whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bafogpt.core import process
from bafogpt.core.errors import AuthError, ConflictError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.local import LocalEngine
from bafogpt.launch.plan import Plan
from tests.small_job import make_job

MARK = "BAFOGPT_TEST_MARK"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """An engine whose runs have a marker variable, by which a test finds their processes."""
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setenv("BAFOGPT_BUCKET", f"file://{tmp_path}/bucket")
    return LocalEngine(Settings(home=str(tmp_path / "home"), bucket=f"file://{tmp_path}/bucket"))


def plan(run: str, name: str = "r1", **options: object) -> Plan:
    task = {"name": name, "run": run, "envs": {"GREETING": "sawubona"}, "resources": {"accelerators": "L40:4"}}
    job = make_job(supervisor={"grace_s": 3})
    return Plan(name=name, job=job, task=task, infra="local", root=Path.cwd(), **options)  # type: ignore[arg-type]


def marked(tmp_path: Path) -> list[str]:
    """Other processes with the test's marker."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid != os.getpid() and each.environ().get(MARK) == str(tmp_path):
                found.append(" ".join(each.cmdline()))
        except psutil.Error:
            continue
    return found


def finish(engine: LocalEngine, name: str = "r1") -> list[str]:
    return list(engine.logs(name, follow=True))


def test_a_run_has_skypilots_environment_and_its_exit_code_is_its_state(engine: LocalEngine, tmp_path: Path):
    engine.launch(
        plan('echo "$GREETING $SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES $SKYPILOT_NODE_IPS"; exit 3'), resume=False
    )
    assert finish(engine) == ["sawubona 0/1 127.0.0.1"]
    assert (engine.status("r1").state, engine.status("r1").exit_code) == ("failed", 3)
    engine.launch(plan("exit 103", "r2"), resume=False)
    finish(engine, "r2")
    assert [(run.name, run.state) for run in engine.runs()] == [("r1", "failed"), ("r2", "stopped")]
    assert process.wait_until(lambda: not marked(tmp_path), 5)


def test_a_run_outlives_the_terminal_that_launched_it(tmp_path: Path, engine: LocalEngine):
    """The launch's session ends with SIGHUP for all its processes, as when a terminal is closed."""
    script = tmp_path / "launch.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.launch.test_local_engine import LocalEngine, Settings, plan\n"
        f"LocalEngine(Settings(home={str(tmp_path / 'home')!r})).launch(plan('sleep 1; echo done'), resume=False)\n"
        "os.killpg(0, signal.SIGHUP)\n"
    )
    subprocess.run(["setsid", "--wait", sys.executable, str(script)], check=False)
    assert process.wait_until(lambda: (tmp_path / "home/runs/r1/state.json").exists(), 20)
    assert finish(engine) == ["done"]
    assert engine.status("r1").state == "succeeded"


def test_processes_that_a_task_leaves_behind_are_ended(engine: LocalEngine, tmp_path: Path):
    run = "sleep 1000 & (setsid sleep 1001 &) ; nohup sleep 1002 >/dev/null 2>&1 & sleep 0.2; exit 0"
    engine.launch(plan(run), resume=False)
    assert process.wait_until(lambda: not engine.status("r1").active, 15)
    assert engine.status("r1").state == "succeeded"
    assert process.wait_until(lambda: not marked(tmp_path), 5), marked(tmp_path)


def test_cancel_sends_sigterm_and_waits(engine: LocalEngine):
    run = "trap 'echo saving; sleep 0.3; echo saved; exit 103' TERM; echo up; while :; do sleep 0.05; done"
    engine.launch(plan(run), resume=False)
    assert process.wait_until(lambda: "up" in list(engine.logs("r1", follow=False)), 10)
    assert engine.cancel("r1").state == "stopped"
    assert list(engine.logs("r1", follow=False))[-2:] == ["saving", "saved"]


def test_a_killed_runner_takes_the_run_with_it_and_the_engine_says_gone(engine: LocalEngine, tmp_path: Path):
    run = engine.launch(plan("trap 'exit 103' TERM; while :; do sleep 0.05; done"), resume=False)
    assert run.pid
    os.kill(run.pid, signal.SIGKILL)
    assert process.wait_until(lambda: engine.status("r1").state == "gone", 5)
    assert process.wait_until(lambda: not marked(tmp_path), 5), marked(tmp_path)
    engine.down("r1")
    with pytest.raises(RunNotFoundError):
        engine.status("r1")


def test_down_ends_a_run_and_removes_its_folder(engine: LocalEngine, tmp_path: Path):
    engine.launch(plan("sleep 1000"), resume=False)
    engine.down("r1")
    assert engine.runs() == []
    assert process.wait_until(lambda: not marked(tmp_path), 5)
    assert list((tmp_path / "home" / "runs").iterdir()) == []


def test_a_second_launch_with_the_same_name_is_refused_and_the_first_goes_on(engine: LocalEngine):
    engine.launch(plan("sleep 0.5; echo done"), resume=False)
    with pytest.raises(ConflictError, match="run r1 is running already"):
        engine.launch(plan("echo other"), resume=True)
    assert finish(engine) == ["done"]
    with pytest.raises(ConflictError, match="run r1 exists already") as caught:
        engine.launch(plan("echo other"), resume=False)
    assert "--resume" in caught.value.hint
    engine.launch(plan("echo more"), resume=True)
    assert finish(engine) == ["done", "more"]


def test_a_named_variable_must_be_there_and_its_value_is_written_nowhere(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = plan("test ${#WANDB_API_KEY} = 13 && echo given", required_secrets=("WANDB_API_KEY",))
    made.task["secrets"] = {"WANDB_API_KEY": None}
    with pytest.raises(AuthError, match="WANDB_API_KEY"):
        engine.launch(made, resume=False)
    monkeypatch.setenv("WANDB_API_KEY", "planted-value")
    engine.launch(made, resume=False)
    assert finish(engine) == ["given"]
    written = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert {"task.yaml", "state.json", "output.log", "runner.log"} <= {file.name for file in written}
    assert not [file for file in written if b"planted-value" in file.read_bytes()]


def test_an_unknown_run_names_the_nearest(engine: LocalEngine):
    engine.launch(plan("true", "zulu-pretrain"), resume=False)
    with pytest.raises(RunNotFoundError, match="did you mean 'zulu-pretrain'"):
        engine.status("zulu-pretrian")


def test_logs_that_are_followed_show_a_line_as_soon_as_it_is_written(engine: LocalEngine):
    engine.launch(plan("echo first; sleep 1; echo second"), resume=False)
    lines = engine.logs("r1", follow=True)
    assert next(lines) == "first"
    assert engine.status("r1").active
    started = time.monotonic()
    assert list(lines) == ["second"]
    assert time.monotonic() - started < 5
