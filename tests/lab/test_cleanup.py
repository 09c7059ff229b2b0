"""A stop leaves nothing, whatever was killed before. Comes before the tests that keep a lab up."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.lab import packages, processes, slurm
from tests.lab.config import SLURM, locked
from tests.lab.conftest import machine_state


def test_nothing_is_left_of_a_lab_whose_parts_were_killed() -> None:
    if reason := packages.why_not():
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    if slurm.is_up():
        pytest.skip("the slurm lab is in use")
    packages.install(packages.SLURM)  # they add users, which stay
    before, marked = machine_state(), processes.marked(SLURM)
    with locked(SLURM):
        slurm.start()
        parts = processes.of_lab(SLURM)
        killed = [
            part for part in parts if any(sign in part.command for sign in (b"slurmctld", b"-N n1", b"sky.server"))
        ]
        assert len(killed) >= 3
        for part in killed:  # their children are orphans now, and some have renamed themselves
            with contextlib.suppress(ProcessLookupError):
                os.kill(part.pid, signal.SIGKILL)
        assert not slurm.is_up()

        slurm.stop()

    assert slurm.leftovers() == []
    assert processes.marked(SLURM) <= marked
    assert machine_state() == before
    slurm.stop()  # and once more
