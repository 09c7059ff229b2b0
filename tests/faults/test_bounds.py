"""A small disk and a slow line: the run goes on or pauses, as the job says, and never leaves half a checkpoint."""

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
from .lane import Lane, in_peace
from .place import Place
from .plan import Kill, Plan, Truth

MIB = 1 << 20
CHECKPOINT = Plan(steps=15, every=3, floats=MIB // 8, max_pending=1)
"""Checkpoints of 1 MiB, of which one may wait."""
UPLINK = 5e6


@pytest.fixture(scope="module")
def truth(place: Place) -> Truth:
    """The run on a disk and a line without bounds."""
    return in_peace(place, CHECKPOINT, "in-peace")


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


def test_behind_a_slow_line_the_trainer_waits_and_every_checkpoint_is_sent(place: Place, truth: Truth):
    start = time.monotonic()
    with Lane("slow", place, CHECKPOINT, uplink=UPLINK) as lane, most_at_once(lane.work) as seen:
        outcome = lane.run([], truth)
    assert outcome.problems == []
    assert seen[0] == 1
    assert len(lane.proxy.committed) == CHECKPOINT.steps // CHECKPOINT.every
    assert lane.proxy.up >= len(lane.proxy.committed) * MIB
    assert time.monotonic() - start >= lane.proxy.up / UPLINK  # the line was as slow as that


def test_behind_a_slow_line_checkpoints_are_left_out_where_the_job_says_so(place: Place, truth: Truth):
    plan = Plan(steps=15, every=3, floats=MIB // 8, max_pending=1, on_backlog="skip")
    kill = Kill("trainer", "request", "PUT marker", stage="after")
    with Lane("skipping", place, plan, uplink=UPLINK / 2.5) as lane, most_at_once(lane.work) as seen:
        outcome = lane.run([kill], truth)
    assert outcome.problems == []
    assert seen[0] == 1
    assert len(lane.proxy.committed) < plan.steps // plan.every


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


def test_a_disk_of_two_checkpoints_is_enough_through_kills(place: Place, truth: Truth, small_disk: Path):
    kills = [  # the first restores step 3; the second leaves step 12 half done and restores step 9
        Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2),
        Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=3),
        Kill("supervisor", "request", "PUT file", stage="half"),
    ]
    with Lane("quota", place, CHECKPOINT, work=small_disk) as lane:
        outcome = lane.run(kills, truth)
    assert outcome.problems == []
    assert len(outcome.fallen) == len(kills)


def test_a_disk_that_is_too_small_is_said_and_what_is_in_the_bucket_is_whole(place: Place, tiny_disk: Path):
    kill = Kill("trainer", "file", "rename checkpoints/.step-#.partial", nth=2)
    with Lane("full", place, CHECKPOINT, work=tiny_disk) as lane:
        (problem,) = lane.run([kill]).problems
        store = lane.store.checkpoints("full")
        assert "MB are free" in problem
        assert [each.step for each in store.complete()] == [3]
        assert [store.problems(each) for each in store.complete()] == [[]]
