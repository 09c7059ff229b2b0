"""What is seen of trainers from outside: whether they get on, and what killed them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bafogpt.agent.oom import OutOfMemory
from bafogpt.agent.progress import Progress
from bafogpt.agent.watchdog import HangDetector
from bafogpt.agent.workers import describe_exit, interface_of
from bafogpt.train.trainer_io import TrainerFiles, checkpoint_name
from tests.agent.test_budget import Clock

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def trainer_files(tmp_path: Path) -> TrainerFiles:
    made = TrainerFiles(tmp_path)
    made.checkpoints.mkdir()
    return made


def step(trainer_files: TrainerFiles, number: int, seconds: float = 1.0) -> None:
    line = {"step": number, "loss": 1.0, "learning_rate": 0.1, "tokens_per_s": 1.0, "mfu": 0.1, "stage": "news"}
    with trainer_files.metrics(1).open("a") as file:
        file.write(json.dumps(line | {"seconds": seconds}) + "\n")


def detector(trainer_files: TrainerFiles, clock: Clock, max_pending: int = 2) -> HangDetector:
    return HangDetector(trainer_files, 1, first_s=100, then_s=10, max_pending=max_pending, clock=clock)


def test_the_first_step_may_take_longer_than_those_after_it(trainer_files: TrainerFiles):
    clock = Clock()
    watched = detector(trainer_files, clock)
    clock.now += 99
    assert watched.hung() is None
    clock.now += 99
    assert watched.hung() == "no first step after 100 s"
    watched = detector(trainer_files, clock)
    watched.hung()
    step(trainer_files, 1)
    assert watched.hung() is None
    clock.now += 11
    assert watched.hung() == "no progress for 10 s"


def test_steps_of_an_earlier_start_are_no_progress(trainer_files: TrainerFiles):
    clock = Clock()
    step(trainer_files, 1)
    watched = detector(trainer_files, clock)
    watched.hung()
    clock.now += 50
    assert watched.hung() is None
    clock.now += 51
    assert watched.hung() == "no first step after 100 s"


def test_a_checkpoint_that_grows_is_progress(trainer_files: TrainerFiles):
    clock = Clock()
    watched = detector(trainer_files, clock)
    step(trainer_files, 1)
    partial = trainer_files.partial(1)
    partial.mkdir()
    for size in range(5):
        (partial / "weights").write_bytes(bytes(size))
        clock.now += 9
        assert watched.hung() is None
    clock.now += 11
    assert watched.hung()


def test_trainers_that_wait_for_the_bucket_do_not_hang(trainer_files: TrainerFiles):
    clock = Clock()
    watched = detector(trainer_files, clock, max_pending=1)
    step(trainer_files, 1)
    (trainer_files.checkpoints / "step-00000001").mkdir()
    for _ in range(5):
        clock.now += 60
        assert watched.hung() is None
    (trainer_files.checkpoints / "step-00000001").rmdir()
    assert watched.hung() is None
    clock.now += 11
    assert watched.hung()


def test_a_step_is_timed_by_what_two_lines_of_metrics_tell(trainer_files: TrainerFiles):
    said: list[str] = []
    progress = Progress(trainer_files.metrics(1), 20, said.append)
    assert progress.follow(quiet=True) is None
    step(trainer_files, 2, seconds=3)
    step(trainer_files, 4, seconds=8)
    assert progress.follow(quiet=True) == 4
    assert progress.step_s == 2.5
    assert len(said) == 1  # one line a second


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/job\n", "job/memory.events"),
        ("0::/docker/1f2e\n", "memory.events"),  # in a container the path is the host's
        ("4:cpu,memory:/job\n0::/\n", "memory/job/memory.oom_control"),
        ("4:memory:/docker/1f2e\n", "memory/memory.oom_control"),
    ],
)
def test_the_kernel_s_count_is_found_where_it_is(tmp_path: Path, own: str, file: str):
    (tmp_path / "own").write_text(own)
    count = tmp_path / "groups" / file
    count.parent.mkdir(parents=True)
    count.write_text("low 0\noom 3\noom_kill 2\n")
    memory = OutOfMemory(tmp_path / "own", tmp_path / "groups")
    assert not memory.happened()
    count.write_text("low 0\noom 4\noom_kill 3\n")
    assert memory.happened()


def test_where_nothing_counts_nothing_happened(tmp_path: Path):
    assert not OutOfMemory(tmp_path / "own", tmp_path).happened()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 32 MB, real; gone after the test."""
    path = MEMORY_GROUPS / f"bafogpt-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(32 << 20))
    except OSError:
        pytest.skip("a memory control group (version 1) needs root and one to be mounted")
    yield path
    path.rmdir()


def test_a_real_kill_by_the_kernel_is_told_from_any_other(group: Path, tmp_path: Path):
    (tmp_path / "own").write_text(f"4:memory:/{group.name}\n")
    memory = OutOfMemory(tmp_path / "own")
    hog = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); b'x' * (512 << 20)"
    killed = subprocess.run([sys.executable, "-c", hog, str(group / "cgroup.procs")], check=False)
    assert killed.returncode == -9
    assert memory.happened()
    why = describe_exit([killed.returncode], 4, out_of_memory=memory.happened())
    assert why == "rank 4 was killed by the kernel: this machine's memory was full"
    assert describe_exit([None, -9], 4) == "rank 5 was killed by SIGKILL"


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_a_checkpoint_may_get_its_name_while_its_bytes_are_counted(trainer_files: TrainerFiles):
    over = threading.Event()

    def save() -> None:
        for step in range(400):
            partial = trainer_files.partial(step)
            partial.mkdir()
            (partial / "weights").write_bytes(b"12345678")
            partial.rename(trainer_files.checkpoints / checkpoint_name(step))
        over.set()

    saving = threading.Thread(target=save)
    saving.start()
    seen = set()
    while not over.is_set():
        seen.add(trainer_files.partial_bytes())
    saving.join()
    assert seen <= {0, 8}
