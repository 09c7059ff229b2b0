"""A small disk and a slow line: the run continues or pauses, as the job says, and never leaves half a checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import points
from .bench import Bench
from .plan import Kill, Plan, Reference
from .run_under_test import RunUnderTest, undisturbed

MIB = 1 << 20
CHECKPOINT = Plan(steps=15, every=3, floats=MIB // 8, max_pending=1)
"""Checkpoints of 1 MiB, of which one may wait."""
UPLINK = 5e6


@pytest.fixture(scope="module")
def reference(bench: Bench) -> Reference:
    """The run on a disk and a line without bounds."""
    return undisturbed(bench, CHECKPOINT, "undisturbed")


@contextmanager
def most_at_once(work: Path) -> Iterator[list[int]]:
    """The largest number of checkpoints seen on the disk at once while the block runs, half-written ones included."""
    seen, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.003):
            seen[0] = max(seen[0], len(points.saves_under_way(work)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_behind_a_slow_line_the_trainer_waits_and_every_checkpoint_is_sent(bench: Bench, reference: Reference):
    start = time.monotonic()
    with RunUnderTest("slow", bench, CHECKPOINT, uplink=UPLINK) as tested, most_at_once(tested.work) as seen:
        result = tested.run([], reference)
    assert result.problems == []
    assert seen[0] == 1
    assert len(tested.proxy.committed) == CHECKPOINT.steps // CHECKPOINT.every
    assert tested.proxy.up >= len(tested.proxy.committed) * MIB
    assert time.monotonic() - start >= tested.proxy.up / UPLINK  # the line was as slow as that


def test_behind_a_slow_line_checkpoints_are_left_out_where_the_job_says_so(bench: Bench, reference: Reference):
    plan = Plan(steps=15, every=3, floats=MIB // 8, max_pending=1, on_backlog="skip")
    kill = Kill("trainer", "request", "PUT marker", stage="after")
    with RunUnderTest("skipping", bench, plan, uplink=UPLINK / 2.5) as tested, most_at_once(tested.work) as seen:
        result = tested.run([kill], reference)
    assert result.problems == []
    assert seen[0] == 1
    assert len(tested.proxy.committed) < plan.steps // plan.every


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two checkpoints, and a little for logs."""
    yield from _mounted(tmp_path / "disk", 2 * MIB + MIB // 4)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which no checkpoint fits beside the one that is restored from."""
    yield from _mounted(tmp_path / "disk", MIB + MIB // 2)


def _mounted(folder: Path, size: int) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk of a set size needs root: it is a mounted tmpfs")
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_of_two_checkpoints_is_enough_through_kills(bench: Bench, reference: Reference, small_disk: Path):
    kills = [  # the first restores step 3; the second leaves step 12 half done and restores step 9
        Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2),
        Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=3),
        Kill("supervisor", "request", "PUT file", stage="half"),
    ]
    with RunUnderTest("quota", bench, CHECKPOINT, work=small_disk) as tested:
        result = tested.run(kills, reference)
    assert result.problems == []
    assert len(result.done_kills) == len(kills)


def test_a_disk_that_is_too_small_is_said_and_what_is_in_the_bucket_is_whole(bench: Bench, tiny_disk: Path):
    kill = Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2)
    with RunUnderTest("full", bench, CHECKPOINT, work=tiny_disk) as tested:
        (problem,) = tested.run([kill]).problems
        store = tested.store.checkpoints("full")
        assert "MB are free" in problem
        assert [each.step for each in store.complete()] == [3]
        assert [store.problems(each) for each in store.complete()] == [[]]
