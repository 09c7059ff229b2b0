"""Real trainer processes on a stream from a real S3 server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.agent.workers import Workers
from bafogpt.core.errors import ExitCode
from bafogpt.train.config import TrainConfig, rank_samples
from bafogpt.train.trainer_io import TrainerFiles

from .conftest import Trained, assert_bit_equal, kill_after, tensors, tiny

Train = Callable[..., Trained]


@pytest.fixture
def whole(train_once: Callable[[TrainConfig], Trained]) -> Trained:
    """The uninterrupted run."""
    return train_once(tiny())


def test_a_run_learns_and_logs_its_samples(whole: Trained):
    (result,) = whole.results
    assert (result.outcome, result.step, result.samples) == ("finished", 12, 96)
    trained = [line for line in whole.lines if "loss" in line]
    assert [line["samples"] for line in trained] == [[8 * i, 8 * i + 8] for i in range(12)]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert {line["stage"] for line in trained} == {"dictionary"}
    assert [line["step"] for line in whole.lines if "validation_loss" in line] == [6, 12]
    assert all(0 < line["mfu"] < 2 and line["tokens_per_s"] > 0 for line in trained)
    assert [staged.step for staged in whole.staged] == [6, 12]


@pytest.mark.parametrize("data", [{}, {"bos": True}], ids=["plain", "bos"])
def test_a_run_killed_and_resumed_ends_with_the_same_bits(
    train: Train, train_once: Callable[[TrainConfig], Trained], data: dict[str, Any]
):
    config = tiny(data=data)
    whole = train_once(config)
    killed = train(config, watch=kill_after(8))
    assert killed.results == []
    assert [staged.step for staged in killed.staged] == [6]
    resumed = train(config, resume=killed.staged[0].folder)
    assert resumed.lines[0]["samples"] == [48, 56]
    assert resumed.losses == {step: loss for step, loss in whole.losses.items() if step > 6}
    assert_bit_equal(tensors(resumed.staged[-1]), tensors(whole.staged[-1]))


def test_sigterm_saves_the_current_step_and_ends(train: Train, whole: Trained):
    stopped = train(tiny(), watch=kill_after(2, signal.SIGTERM))
    (result,) = stopped.results
    assert result.outcome == "stopped"
    assert 2 <= result.step < 12
    assert stopped.staged[-1].step == result.step
    resumed = train(tiny(), resume=stopped.staged[-1].folder)
    assert_bit_equal(tensors(resumed.staged[-1]), tensors(whole.staged[-1]))


@pytest.mark.slow
def test_two_processes_read_the_same_stream_and_learn_the_same(train: Train, whole: Trained, tmp_path: Path):
    two = train(tiny(), processes=2)
    assert [result.outcome for result in two.results] == ["finished", "finished"]
    assert [line["samples"] for line in two.lines if "loss" in line] == [
        line["samples"] for line in whole.lines if "loss" in line
    ]
    assert two.losses == pytest.approx(whole.losses, rel=1e-5)
    files = sorted(path.name for path in two.staged[0].folder.glob("*.safetensors"))
    assert len(files) == 2  # a shard a process

    one = train(tiny(), processes=1, resume=two.staged[0].folder)  # 2 → 1
    assert one.losses == pytest.approx({s: loss for s, loss in whole.losses.items() if s > 6}, rel=1e-5)
    again = train(tiny(), processes=2, resume=whole.staged[0].folder)  # 1 → 2
    assert again.losses == pytest.approx(one.losses, rel=1e-5)


FIFTY_STEPS = tiny(tokens=50 * 256, validation={"every": 0}, checkpoint={"every": 50}, precision="32-true")


@pytest.mark.parametrize("config", [FIFTY_STEPS, tiny(data={"bos": True})], ids=["fifty-steps", "bos"])
def test_two_processes_have_the_loss_curve_of_one(
    train: Train, train_once: Callable[[TrainConfig], Trained], config: TrainConfig
):
    one, two = train_once(config).losses, train(config, processes=2)
    assert len(one) == config.steps
    assert two.losses == pytest.approx(one, rel=1e-5)
    read = [line["samples"] for line in two.lines if "loss" in line]
    assert read == [[8 * step, 8 * step + 8] for step in range(config.steps)]


def test_killed_on_two_one_and_two_processes_every_sample_is_read_once_in_order(train: Train):
    config = tiny(tokens=18 * 256, validation={"every": 0}, checkpoint={"every": 3})
    ledger: list[list[int]] = []
    resume: Path | None = None
    for processes, kill in ((2, 5), (1, 11), (2, None)):
        part = train(config, processes=processes, resume=resume, watch=kill_after(kill) if kill else lambda *_: None)
        kept = part.staged[-1]
        assert kept.step < 18 or kill is None
        ledger += [line["samples"] for line in part.lines if "loss" in line and line["step"] <= kept.step]
        resume = kept.folder
    assert ledger == [[8 * step, 8 * step + 8] for step in range(18)]  # as uninterrupted, unsorted


@given(
    steps=st.integers(1, 5),
    counts=st.sampled_from([(1, 2), (1, 4), (2, 4), (2, 6), (3, 6), (1, 6)]),
    micros=st.integers(1, 3),
    first_step=st.integers(0, 3),
)
def test_the_stream_is_the_same_for_every_number_of_processes(
    steps: int, counts: tuple[int, int], micros: int, first_step: int
):
    few, many = counts
    batch = 12 * micros

    def stream(processes: int) -> list[int]:
        """Every step's samples, rank after rank."""
        ranks = [
            list(rank_samples(first_step * batch, (first_step + steps) * batch, batch, rank, processes))
            for rank in range(processes)
        ]
        share = batch // processes
        return [i for step in range(steps) for own in ranks for i in own[step * share : (step + 1) * share]]

    assert stream(few) == stream(many) == list(range(first_step * batch, (first_step + steps) * batch))


@pytest.mark.parametrize(
    ("over", "difference"),
    [
        ({"model": {"overrides": {"n_embd": 32}}}, "model.n_embd is 64 there and 32 here"),
        ({"data": {"bos": True}}, "bos is None there and 2 here"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused_by_name(
    train: Train, whole: Trained, over: dict[str, Any], difference: str
):
    (result,) = train(tiny(**over), resume=whole.staged[0].folder).results
    assert (result.outcome, result.exit_code, result.retry) == ("failed", ExitCode.USAGE, False)
    assert f"step-00000006 belongs to another run: {difference}" in result.error


def test_a_torn_checkpoint_is_refused_and_can_be_fetched_again(train: Train, whole: Trained, tmp_path: Path):
    torn = tmp_path / "step-00000006"
    shutil.copytree(whole.staged[0].folder, torn)
    (file,) = torn.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (result,) = train(tiny(), resume=torn).results
    assert result.outcome == "failed"
    assert result.retry
    assert "cannot be loaded" in result.error


def test_a_trainer_with_backlog_skips_checkpoints_but_never_the_last(train: Train):
    def take_one_away(trainers: Workers, trainer_files: TrainerFiles) -> None:
        path, pending = trainer_files.metrics(1), trainer_files.pending()
        if not seen and pending and path.exists() and '"step": 12' in path.read_text():  # the last one always waits
            seen.append(pending[0].name)
            trainer_files.drop(pending[0])

    seen: list[str] = []
    config = tiny(checkpoint={"every": 3, "max_pending": 1, "on_backlog": "skip"})
    ended = train(config, watch=take_one_away)
    assert [result.outcome for result in ended.results] == ["finished"]
    assert seen == ["step-00000003"]
    assert [staged.step for staged in ended.staged] == [12]
    assert [line for line in ended.output if line.startswith("no checkpoint at step")] == [
        f"no checkpoint at step {step}: 1 wait to be sent" for step in (6, 9)
    ]


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_complete(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A disk of 2 MB: one checkpoint of 1.2 MB fits, a second one does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        ended = train(tiny(data={"cache_gb": 0}), folder=disk / "run")
        assert [staged.step for staged in ended.staged] == [6]
        assert json.loads((ended.staged[0].folder / "checkpoint.json").read_text())["step"] == 6
        assert tensors(ended.staged[0])
        left = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    (result,) = ended.results
    assert (result.outcome, result.exit_code, result.retry) == ("failed", ExitCode.FAILURE, False)
    assert "step-00000012 needs" in result.error
    assert "MB are free" in result.error
    assert left == ["step-00000006"]
