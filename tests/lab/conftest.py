"""The labs as fixtures: one of each a session, started when a test first asks, gone at the end.

A lab that a person has started is used and left running. Where no lab can be, tests are skipped with the reason;
with ``CI=true`` they fail instead, because there they are a requirement.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import pods, processes, slurm
from tests.lab.__main__ import Lab
from tests.lab.config import PODS, SLURM, VENV, LabConfig, LabError, UnavailableError, locked, outer_environment

if TYPE_CHECKING:
    from bafogpt.storage.bucket import Bucket
    from tests.lab.rented import LabClient, Rented


@dataclass(frozen=True)
class RunningLab:
    """A lab that is up."""

    config: LabConfig
    environment: Mapping[str, str]

    def run(self, *words: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the lab's environment, its output as text. ``sky``, ``bafogpt`` and ``ssh`` are the lab's."""
        # into a file: a pipe stays open while any daemon has it
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                words,
                env=outer_environment() | dict(self.environment),
                cwd=self.config.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
            output.seek(0)
            text = output.read()
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{text[-4000:]}"
        return subprocess.CompletedProcess(words, done.returncode, text, "")

    def provisioning(self, size: int = 6000) -> str:
        """The end of what SkyPilot wrote down while it set up the newest cluster: its errors leave out the reason."""
        found = sorted(self.config.home.rglob("provision.log"), key=lambda path: path.stat().st_mtime)
        return found[-1].read_text(errors="replace")[-size:] if found else "SkyPilot has provisioned nothing"

    def sky(self, *words: str, timeout_s: float = 300, check: bool = True) -> str:
        """What ``sky`` prints."""
        return self.run(str(VENV / "bin/sky"), *words, timeout_s=timeout_s, check=check).stdout

    def task(self, name: str, resources: Mapping[str, Any], run: str) -> Path:
        """A task file; YAML is a superset of JSON."""
        path = self.config.home / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, "resources": dict(resources), "run": run}))
        return path


def machine_state() -> dict[str, str]:
    """What a lab must leave as it was."""
    files = ("/etc/hosts", "/etc/passwd", "/etc/group", "/proc/sys/net/ipv4/ip_forward")
    links = "\n".join(sorted(os.listdir("/sys/class/net")))
    return {name: Path(name).read_text() for name in files} | {"links": links}


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[RunningLab]:
    """The Slurm cluster: ``--infra slurm``, L40:4 twice, A10:2 once."""
    yield from _up(SLURM, slurm)


@pytest.fixture(scope="session")
def pods_lab() -> Iterator[RunningLab]:
    """The pod cloud: ``--infra runpod``, L40 up to four a pod, in the project's image; ``pods.control`` for faults."""
    yield from _up(PODS, pods)


def _up(config: LabConfig, lab: Lab) -> Iterator[RunningLab]:
    ours = not lab.is_up()
    try:
        with locked(config):
            if ours:
                lab.install()
            before, marked = machine_state(), processes.marked(config)
            lab.start()
    except LabError as error:
        with locked(config):
            lab.stop()
        if isinstance(error, UnavailableError) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise
    try:
        yield RunningLab(config, lab.environment())
    finally:
        if ours:
            with locked(config):
                lab.stop()
            assert lab.leftovers() == []
            assert processes.marked(config) <= marked
            assert machine_state() == before


@pytest.fixture
def rented(pods_lab: RunningLab, s3: Any, starter: Bucket, tmp_path: Path) -> Iterator[Rented]:
    """The pod cloud with a bucket that its pods reach; what a test leaves there is taken down."""
    from tests.lab.rented import rented

    yield from rented(pods_lab, s3, starter, tmp_path)


@pytest.fixture
def slurm_client(slurm_lab: RunningLab, s3: Any, starter: Bucket, tmp_path: Path) -> Iterator[LabClient]:
    """``bafogpt`` on the Slurm cluster, with the session's bucket; what a test leaves there is taken down."""
    from tests.lab.rented import LabClient, lab_environment

    client = LabClient(slurm_lab, starter, lab_environment(slurm_lab, s3, tmp_path), tmp_path)
    yield client
    client.clean_up()


@pytest.fixture
def name() -> str:
    """A run's name that no other test has."""
    return f"mt-{uuid.uuid4().hex[:6]}"
