"""``./scripts/gpu-check``: every part runs, whatever happens to the others."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import target
from benchmarks.gpu_check.report import Options, Report
from benchmarks.gpu_check.runner import Part, run

ROOT = Path(__file__).parents[2]
HERE = "tests.train.test_gpu_check"
TINY = Options(tiny=True)


def good(report: Report) -> None:
    report.note("all", "well")


def raises(report: Report) -> None:
    report.note("before", 1)
    raise ValueError("a shape is wrong")


def one_case_raises(report: Report) -> None:
    with report.case("first"):
        raise ValueError("a shape is wrong")
    report.note("second", 2)


def crashes(report: Report) -> None:
    report.note("before", 1)
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves_with_zero(report: Report) -> None:
    os._exit(0)


def hangs(report: Report, *, pids: str) -> None:
    """With a child of its own, as compilers are, that ignores what is gentle."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    report.note("before", 1)
    time.sleep(600)


def part(function: str, *, usual: float = 0, limit: float = 60, **arguments: Any) -> Part:
    return Part(name=function, function=f"{HERE}:{function}", usual=usual, limit=limit, arguments=arguments)


def ran(*parts: Part, seconds: float = 120) -> dict[str, dict[str, Any]]:
    said: list[dict[str, Any]] = []
    assert run(parts, options=TINY, seconds=seconds, say=said.append) == said
    return {line["part"]: line for line in said}


def test_parts_that_raise_crash_or_leave_are_red_and_the_others_run() -> None:
    parts = (part(name) for name in ("raises", "crashes", "leaves_with_zero", "one_case_raises", "good"))
    lines = ran(*parts)
    assert [line["ok"] for line in lines.values()] == [False, False, False, False, True]
    assert lines["raises"]["found"] == lines["crashes"]["found"] == {"before": 1}
    assert lines["raises"]["error"][-1] == "ValueError: a shape is wrong"
    assert lines["crashes"]["error"][0] == "killed by SIGSEGV"
    assert "ended early" in lines["leaves_with_zero"]["error"][0]
    assert lines["one_case_raises"]["red"] == ["first"]
    assert lines["one_case_raises"]["found"]["second"] == 2
    assert lines["good"]["found"] == {"all": "well"}


def test_a_part_that_hangs_is_ended_with_its_children_and_keeps_what_it_found(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    lines = ran(part("hangs", limit=6, pids=str(pids)), part("good"))
    assert lines["hangs"]["ok"] is False
    assert lines["hangs"]["found"] == {"before": 1}
    assert lines["hangs"]["error"][0] == "not done after 6 s: killed"
    assert lines["good"]["ok"] is True
    for pid in pids.read_text().split():
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_part_that_does_not_fit_into_the_time_is_skipped() -> None:
    lines = ran(part("raises", usual=1000), part("good", usual=1), seconds=100)
    assert lines["raises"]["ok"] is None
    assert "1000" in lines["raises"]["skipped"]
    assert lines["good"]["ok"] is True


@pytest.mark.parametrize(
    ("mfu", "tiny", "ok"), [(0.41, False, True), (0.39, False, False), (1.1, False, False), (0.1, True, True)]
)
def test_the_best_row_is_compared_with_the_target(tmp_path: Path, mfu: float, tiny: bool, ok: bool) -> None:
    rows = [
        {"part": "throughput 1 full", "found": {"tokens_per_s": 10.0, "mfu": 0.5}},
        {"part": "throughput 4 full", "found": {"tokens_per_s": 20.0, "mfu": mfu}},
        {"part": "throughput 8 full", "found": {"error": "out of memory"}},
    ]
    report = Report(to=tmp_path / "found", seconds=9, options=Options(tiny=tiny), earlier=rows)
    target.mfu(report)
    entry = json.loads((tmp_path / "found").read_text())
    assert entry["ok"] is ok
    assert entry["value"]["row"] == "throughput 4 full"


@pytest.mark.parametrize(("factor", "ok"), [(1.000001, [True] * 4), (1.01, [False] * 4), (float("nan"), [False] * 4)])
def test_a_difference_that_is_too_large_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, ok: list[bool]
) -> None:
    import torch

    from benchmarks.gpu_check import correctness

    calls = itertools.count()

    def computed(*_: Any) -> dict[str, torch.Tensor]:  # one reference, and then two to compare with it
        names = (correctness.LOGITS, correctness.LOSS, "some.weight")
        return {name: torch.ones(3) for name in names} | (
            {correctness.LOSS: torch.full((3,), factor)} if next(calls) % 3 else {}
        )

    monkeypatch.setattr(correctness, "_computed", computed)
    correctness.equal(Report(to=tmp_path / "found", seconds=99, options=TINY))
    entries = [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    assert [entry["ok"] for entry in entries if "name" in entry] == ok


def check(*words: str, out: Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and lines of ``gpu-check``, which must be those in the file, too."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--tiny", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OUT": str(out)}, capture_output=True, text=True, check=False
    )
    assert done.stdout == (out / "gpu_check.jsonl").read_text(), done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_some_parts_run_by_name(tmp_path: Path) -> None:
    code, lines = check("--only", "machine,resume", out=tmp_path)
    assert [(line["part"], line["ok"], line["device"]) for line in lines] == [
        ("machine", True, "CPU"),
        ("resume", True, "CPU"),
    ]
    assert code == 0
    assert lines[1]["found"]["as jobs run"]["unequal_parameters"] == 0


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    code, lines = check(out=tmp_path)
    assert [line["part"] for line in lines if line["ok"] is not True] == []
    assert code == 0
    assert {line["part"].split()[0] for line in lines} == {
        *("machine", "equal", "flex", "resume", "throughput", "mfu", "loss", "compiled", "qlora", "generate", "float8"),
    }
