"""Each check of a machine: what it finds, what it says, and what it lets pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bafogpt.agent import preflight
from bafogpt.agent.preflight import MachineRequirements, PreflightReport
from bafogpt.core import nvidia_smi
from bafogpt.core.errors import ConfigError, UnfitMachineError, UnreachableError
from bafogpt.storage.bucket import Bucket
from tests.smi import FakeSmi

SKEW = preflight.clock_skew_s


Check = Callable[..., PreflightReport]


@pytest.fixture
def check(bucket: Bucket, tmp_path: Path) -> Check:
    """``check(**changes)``: all checks but the all-reduce, for a job on four rented L40 with these changes."""
    needs = MachineRequirements(name="zulu", processes=1, gpu="L40", gpus=4, rented=True, folder=tmp_path, disk_bytes=1)
    needs = replace(needs, collective_timeout_s=0.0)

    def run(command: Sequence[str] = (), **changes: Any) -> PreflightReport:
        return preflight.check(replace(needs, **changes), bucket, log=print, command=command)

    return run


def messages(report: PreflightReport) -> list[str]:
    return [each.message for each in report.problems]


def test_a_good_machine_passes_with_its_figures(smi: FakeSmi, check: Check, bucket: Bucket):
    report = check()
    report.require_fit()
    assert report.problems == ()
    assert report.figures["driver"] == "580.95.05"
    assert report.figures["gpus"] == ["NVIDIA L40"] * 4
    assert report.figures["disk_free"] > report.figures["disk_needed"] == 1
    assert abs(report.figures["clock_skew_s"]) < 5
    assert bucket.list() == []  # the object that the clock was read from is gone


@pytest.mark.parametrize(
    ("cuda", "driver", "minimum"),
    [
        ("13.0", "575.57.08", "580.65.06"),
        ("13.2", "580.65.05", "580.65.06"),
        ("12.8", "525.60.12", "525.60.13"),
        ("12.8", "470.256.02", "525.60.13"),
        *[(cuda, new, "") for cuda, new in (("13.0", "580.65.06"), ("12.8", "525.105.17"))],
        *[(cuda, unknown, "") for cuda, unknown in (("", "1.0"), ("11.8", "1.0"), ("13.0", "[N/A]"))],
    ],
)
def test_a_driver_too_old_for_torch_is_named_and_one_of_unknown_version_passes(
    smi: FakeSmi, check: Check, monkeypatch: pytest.MonkeyPatch, cuda: str, driver: str, minimum: str
):
    monkeypatch.setattr(preflight, "torch_cuda", lambda: cuda)
    smi.gpus(*["NVIDIA L40"] * 4, driver=driver)
    report = check()
    if not minimum:
        assert report.problems == ()
        return
    assert messages(report) == [f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {minimum} or newer"]
    assert "--infra" in report.fatal[0].hint
    with pytest.raises(UnfitMachineError, match=driver):
        report.require_fit()


@pytest.mark.parametrize("count", [None, 0, 3])
def test_fewer_gpus_than_requested_do_not_train_on_the_cpu(
    smi: FakeSmi, check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int | None
):
    smi.gpus(*["NVIDIA L40"] * (count or 0))
    if count is None:
        monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi at all
    report = check()
    assert messages(report) == [f"L40:4 GPUs requested, {count or 0} visible"]
    assert report.fatal[0].hint == "bafogpt cloud launch … --name zulu --resume"


def test_more_trainers_than_gpus_is_a_mistake_of_the_job(smi: FakeSmi, check: Check):
    with pytest.raises(ConfigError, match=r"supervisor\.processes is 6, and 4 GPUs are visible"):
        check(processes=6)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVRM: Xid 79, GPU has fallen off the bus'; exit 15", "exit code 15: NVRM: Xid 79"),
        ("exec sleep 60", "did not answer within"),
        ("echo '<html>no GPU here</html>'", "not what was asked for"),
    ],
)
def test_a_driver_that_fails_hangs_or_babbles_is_fatal_where_gpus_were_asked_for(
    smi: FakeSmi, check: Check, monkeypatch: pytest.MonkeyPatch, script: str, said: str
):
    smi.script(script)
    monkeypatch.setattr(nvidia_smi, "TIMEOUT_S", 0.5 if "sleep" in script else 20.0)
    report = check()
    assert "the GPUs do not answer" in report.fatal[0].message and said in report.fatal[0].message
    own = check(gpus=0, gpu="", rented=False)
    assert own.problems and own.fatal == []  # an old driver on a machine that is to use its CPU


def test_a_gpu_that_another_program_uses(smi: FakeSmi, check: Check):
    smi.gpus(*["NVIDIA L40"] * 4, used=20480)
    assert messages(check()) == ["GPU 0 is in use by another program: 21.5 GB of its memory"]
    smi.gpus(*["NVIDIA L40"] * 4, used=600, programs="GPU-2, 4711, /usr/bin/miner, 590\n")
    report = check()
    assert messages(report) == ["GPU 2 is in use by /usr/bin/miner, process 4711: 0.6 GB of its memory"]
    assert report.fatal
    assert check(rented=False).fatal == []  # the desktop of your own machine
    smi.gpus(*["NVIDIA L40"] * 4, used=600)
    assert check().problems == ()


def test_a_gpu_whose_memory_is_just_being_freed_is_waited_for(
    smi: FakeSmi, check: Check, monkeypatch: pytest.MonkeyPatch
):
    smi.gpus(*["NVIDIA L40"] * 4, used=20480)
    monkeypatch.setattr(preflight, "RELEASE_S", 30.0)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        smi.gpus(*["NVIDIA L40"] * 4)

    monkeypatch.setattr(time, "sleep", sleep)
    assert check().problems == ()
    assert slept.count(1.0) == 1  # subprocess sleeps, too, for a millisecond


def test_a_gpu_that_is_smaller_than_its_type(smi: FakeSmi, check: Check):
    smi.gpus(*["NVIDIA A10"] * 4, total=23028)
    assert messages(check()) == ["GPU 0 (NVIDIA A10) has 24.1 GB, and a L40 has 47.7"]
    assert check(gpu="A10").problems == ()
    assert check(gpu="RTX9090").problems == ()


def test_a_disk_too_small_says_what_is_needed_and_what_the_run_has_there_counts_as_free(
    smi: FakeSmi, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=30_000_000_000))
    report = check(disk_bytes=107_000_000_000)
    (problem,) = report.fatal
    assert problem.message == f"the job needs 107.0 GB of disk at {tmp_path}, and 30.0 GB are free"
    assert problem.hint.startswith("disk_size: 159 ")
    own = check(disk_bytes=107_000_000_000, rented=False)
    assert own.problems == (replace(problem, fatal=False),)
    assert check(disk_bytes=None).problems == ()
    before = preflight.disk_free(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "block").write_bytes(b"x" * 1000)
    assert preflight.disk_free(tmp_path) == before + 1000


@pytest.mark.parametrize(
    ("off", "said", "fatal"),
    [
        (400, "400 s ahead of", True),
        (-400, "400 s behind", True),
        (60, "60 s ahead of", False),
        (-60, "60 s behind", False),
        (20, "", False),
    ],
)
def test_a_clock_that_differs_from_the_buckets(
    smi: FakeSmi,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
    off: int,
    said: str,
    fatal: bool,
):
    now = time.time
    monkeypatch.setattr(preflight, "clock_skew_s", lambda bucket: SKEW(bucket, lambda: now() + off))
    report = check()
    assert bool(report.fatal) is fatal
    if said:
        (problem,) = report.problems
        digits = int(problem.message.split(" is ")[1].split()[0])
        assert abs(digits - abs(off)) <= 3 and said.split()[2] in problem.message  # both clocks tick meanwhile
    else:
        assert report.problems == ()
    assert check(rented=False).figures["clock_skew_s"] is None


def test_a_slow_bucket_is_no_wrong_clock_and_one_that_does_not_answer_is_not_judged(bucket: Bucket):
    times = iter([1_000_000.0, 1_000_200.0])
    slow: Any = SimpleNamespace(
        put=lambda *_: None,
        delete=lambda _: None,
        info=lambda _: SimpleNamespace(modified=SimpleNamespace(timestamp=lambda: 1_000_190.0)),
    )
    assert SKEW(slow, lambda: next(times)) == 0.0

    def refuse(*_: Any) -> None:
        raise UnreachableError("no answer")

    assert SKEW(SimpleNamespace(put=refuse)) is None  # type: ignore[arg-type]


def test_all_that_is_wrong_is_said_at_once(smi: FakeSmi, check: Check):
    smi.gpus(*["NVIDIA L40"] * 3, driver="550.54.15", used=20480)
    with pytest.raises(UnfitMachineError) as caught:
        check().require_fit()
    for part in ("3 visible", "550.54.15", "in use"):
        assert part in caught.value.message
    assert caught.value.exit_code == 105


def test_without_gpus_asked_for_or_there_nothing_is_started(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preflight.nvidia_smi.subprocess, "Popen", refuse)
    report = check(gpu="", gpus=0, rented=False, processes=2)
    assert report.problems == ()


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (
            "raise SystemExit('CUDA error 802: system not yet initialized')",
            "a first sum on the GPU failed: rank 0 ended",
        ),
        ("print('ready'); print('{\"gb_per_s\": 0.0}')", None),
    ],
)
def test_one_gpu_alone_is_tried_too(smi: FakeSmi, check: Check, program: str, found: str | None):
    smi.gpus("NVIDIA L40")

    report = check((sys.executable, "-c", program), gpus=1, processes=0, collective_timeout_s=30.0)

    assert [each.message.startswith(found or "?") for each in report.fatal] == ([True] if found else [])
