"""A run's metrics in TensorBoard: read back by TensorBoard itself, from the files and from its server."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from bafogpt.cli import main as root
from bafogpt.core import process
from bafogpt.core.errors import BafoError, ConflictError, RunNotFoundError, UnreachableError
from bafogpt.reports import tensorboard as boards
from tests.reports import synthetic
from tests.reports.synthetic import NAME, SyntheticRun

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    pytest.skip("tensorboard is not installed", allow_module_level=True)


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in read(folder).Scalars(tag)]


def system_stats(run: SyntheticRun, *lines: dict[str, Any]) -> None:
    text = "".join(json.dumps({"time": run.clock, "attempt": 1, "node": 0, **line}) + "\n" for line in lines)
    run.store.folder(NAME).put("system_stats/0001-00000.jsonl", text.encode())


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """Killed after step 51, resumed from 40, done at 120."""
    return synthetic.drilled(tmp_path)


def test_the_curve_is_one_although_steps_were_done_twice(run: SyntheticRun, tmp_path: Path):
    export = boards.TensorBoardExport(run.store, NAME, tmp_path / "tb")
    assert export.update() == len(run.store.metrics(NAME))
    export.close()
    summary = synthetic.summarise(run)
    curve = scalars(tmp_path / "tb" / NAME, "train/loss")
    assert [step for step, _ in curve] == list(range(1, 121))
    assert [value for _, value in curve] == pytest.approx([value for _, value in summary.series("loss")], rel=1e-6)
    assert dict(scalars(tmp_path / "tb" / NAME, "validation/loss")) == pytest.approx(dict(summary.validation), rel=1e-6)
    assert {"train/learning_rate", "speed/tokens_per_s", "speed/mfu"} <= set(
        read(tmp_path / "tb" / NAME).Tags()["scalars"]
    )


def test_the_time_of_a_point_is_that_of_its_line_and_the_job_is_there_as_text(run: SyntheticRun, tmp_path: Path):
    export = boards.TensorBoardExport(run.store, NAME, tmp_path)
    export.update()
    export.close()
    found = read(tmp_path / NAME)
    assert found.Scalars("train/loss")[-1].wall_time == run.store.metrics(NAME)[-2]["time"]
    (text,) = found.Tensors("job")
    assert "tokens: 245760" in text.tensor_proto.string_val[0].decode()


def test_system_stats_are_curves_of_each_gpu_with_one_point_a_step(run: SyntheticRun, tmp_path: Path):
    gpu = {"utilization": 0.9, "memory_used": 44e9, "power": None}
    lines = [{"step": step, "cpu": cpu, "gpus": [gpu, gpu]} for step, cpu in ((1, 0.1), (1, 0.2), (2, 0.3))]
    system_stats(run, *lines)
    export = boards.TensorBoardExport(run.store, NAME, tmp_path)
    export.update()
    export.close()
    assert scalars(tmp_path / NAME, "machine/cpu") == [(1, pytest.approx(0.1)), (2, pytest.approx(0.3))]
    assert scalars(tmp_path / NAME, "machine/gpu1/memory_used_GB")[0] == (1, 44.0)
    assert "machine/gpu0/power" not in read(tmp_path / NAME).Tags()["scalars"]


def test_it_keeps_up_with_the_bucket_and_a_bucket_out_of_reach_is_no_end(tmp_path: Path, monkeypatch: Any):
    run = synthetic.new(tmp_path)
    run.begin()
    run.start(0)
    run.train(1, 3)
    run.save(state="running")
    export = boards.TensorBoardExport(run.store, NAME, tmp_path / "tb")
    export.update()
    rounds: list[float] = []
    real = export.update

    def update() -> int:
        if len(rounds) == 1:
            raise UnreachableError("no answer")
        return real()

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 2:
            run.train(4, 7)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(export, "update", update)
    with pytest.raises(KeyboardInterrupt):
        boards.keep_updating([export], 5.0, sleep)
    assert [step for step, _ in scalars(tmp_path / "tb" / NAME, "train/loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_new_export_takes_the_place_of_the_old_one(run: SyntheticRun, tmp_path: Path):
    for _ in range(2):
        export = boards.TensorBoardExport(run.store, NAME, tmp_path)
        export.update()
        export.close()
    assert len(list((tmp_path / NAME).iterdir())) == 1


def test_the_command_writes_the_files_and_says_where(
    run: SyntheticRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["cloud", "tensorboard", NAME, "--export", str(tmp_path / "out"), "--bucket", f"file://{tmp_path}/bucket"]
    assert root.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [NAME], "folder": str(tmp_path / "out"), "lines": 137}
    assert len(scalars(tmp_path / "out" / NAME, "train/loss")) == 120


def test_what_cannot_be_is_said_before_anything_is_written(run: SyntheticRun, tmp_path: Path, monkeypatch: Any):
    with pytest.raises(RunNotFoundError):
        boards.TensorBoardExport(run.store, "nobody", tmp_path / "tb")
    with socket.socket() as taken:
        taken.bind((boards.LOOPBACK, 0))
        taken.listen()
        with pytest.raises(ConflictError, match="already in use"):
            boards.start(tmp_path / "tb", taken.getsockname()[1])
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BafoError, match="not installed"):
        boards.TensorBoardExport(run.store, NAME, tmp_path / "tb")


def test_tensorboard_serves_the_run_on_the_loopback_address(run: SyntheticRun, tmp_path: Path):
    export = boards.TensorBoardExport(run.store, NAME, tmp_path / "tb")
    export.update()
    export.close()
    before = {each.laddr.port for each in psutil.Process().net_connections() if each.status == "LISTEN"}
    url = boards.start(tmp_path / "tb")
    new = [each.laddr for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    assert [each.ip for each in new if each.port not in before] == [boards.LOOPBACK]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    points: list[Any] = []

    def served() -> bool:
        address = f"{url}data/plugin/scalars/scalars?run={NAME}&tag=train/loss"
        with contextlib.suppress(OSError), opener.open(address, timeout=10) as answer:
            points[:] = json.load(answer)
        return len(points) == 120

    assert process.wait_until(served, timeout_s=60)
    assert [step for _, step, _ in points] == list(range(1, 121))
