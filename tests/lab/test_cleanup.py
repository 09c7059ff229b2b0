"""A stop leaves nothing, even after parts of the lab were killed. Runs before the tests that keep the Slurm lab up."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.lab import processes, slurm
from tests.lab.config import SLURM, UnavailableError, locked
from tests.lab.conftest import machine_state


def test_a_stop_cleans_up_a_lab_whose_parts_were_killed() -> None:
    if slurm.is_up():
        pytest.skip("the slurm lab is in use")
    with locked(SLURM):
        try:
            slurm.install()  # adds users, which stay
        except UnavailableError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        before, marked = machine_state(), processes.marked(SLURM)
        slurm.start()
        killed = [
            each
            for each in processes.of_lab(SLURM)
            if any(sign in each.command for sign in (b"slurmctld", b"-N n1", b"sky.server"))
        ]
        assert len(killed) >= 3
        for process in killed:  # their children are orphans now, and some have renamed themselves
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        assert not slurm.is_up()

        slurm.stop()

        assert slurm.leftovers() == []
        assert processes.marked(SLURM) <= marked
        assert machine_state() == before
        slurm.stop()  # a second stop is fine
