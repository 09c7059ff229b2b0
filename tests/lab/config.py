"""The folder, ports and environment of a lab on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv"
HERE = Path(__file__).parent

FOLDER = Path("/var/lib/bafogpt-lab")
"""One machine has one of each lab: their ports are fixed, so that a person can type them,
and below those that Linux gives to connections."""

CACHE = Path("/var/cache/bafogpt-lab")
"""What uv has downloaded for the nodes. It stays after a stop, for it is nothing but time."""

MARK = "BAFOGPT_LAB"
"""The variable by which a process is known to belong to a lab, whoever started it."""


class LabError(Exception):
    """The lab cannot do what was asked; the text says why and what to do."""


class UnavailableError(LabError):
    """This machine cannot have the lab at all: not root, no packages."""


@dataclass(frozen=True)
class LabConfig:
    """One lab's folder and ports."""

    name: str
    api_port: int
    """of SkyPilot's API server; its own port, so that a person's server is left alone"""

    cloud_port: int
    """of what is rented from: the sshd of the login node, or the API of the pods"""

    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", FOLDER / self.name)

    @property
    def queue_port(self) -> int:
        """of the API server's queue, which SkyPilot derives from the other (``mp_queue.get_queue_manager_port``)"""
        return 50000 + (11 + self.api_port - 46580) % 10000

    @property
    def home(self) -> Path:
        """HOME of SkyPilot, client and server."""
        return self.folder / "home"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def ready(self) -> Path:
        """Exists while the lab is up: the last thing that a start writes and the first that a stop removes."""
        return self.folder / "ready"

    @property
    def user_hash(self) -> str:
        """SkyPilot's id of the person: fixed, so that its ssh connections are known by their control path."""
        return f"1ab0{self.api_port:04x}"

    def base_environment(self) -> dict[str, str]:
        """What both labs need in the environment of ``sky``, ``bafogpt`` and the API server."""
        tools = [str(self.home / "bin"), str(VENV / "bin")]
        known = [part for part in os.environ.get("PATH", os.defpath).split(":") if part not in tools]
        return {
            "HOME": str(self.home),
            "PATH": ":".join([*tools, *known, *(part for part in ("/usr/sbin", "/sbin") if part not in known)]),
            "PYTHONPATH": str(HERE / "plugin"),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.api_port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SPT_NOENV": "1",  # workers rename themselves; without this their environment, and the mark in it, is lost
            MARK: str(self.folder),
        }


SLURM = LabConfig("slurm", api_port=27680, cloud_port=27622)
PODS = LabConfig("pods", api_port=27780, cloud_port=27722)

SLURM_CONTROL_PORT = 27617
"""of slurmctld; node i listens on the i-th port after it"""

PASSED_ON = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA", "CURL_CA", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""How this machine reaches its package index; a lab's machines, which are this one, reach it the same way."""

FOREIGN = ("SKYPILOT_", "SKY_", "RUNPOD_", "SLURM_", "CONTAINERS_", "DOCKER_", "KUBECONFIG", "XDG_", MARK)
"""What a person has set for their own clouds begins with one of these, and has no place in a lab."""


def outer_environment() -> dict[str, str]:
    """This process's environment without what would lead SkyPilot elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


@contextlib.contextmanager
def locked(config: LabConfig) -> Iterator[None]:
    """One start or stop of a lab at a time on this machine."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f".{config.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def answers(port: int) -> bool:
    """Whether something accepts connections at the port on loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def need_free(*ports: int) -> None:
    """Raise LabError when another program has one of the ports: SkyPilot would take its server for the lab's."""
    if taken := [port for port in ports if answers(port)]:
        raise LabError(f"port {', '.join(map(str, taken))} of 127.0.0.1 is in use by another program")


def passed_on() -> dict[str, str]:
    """The variables of PASSED_ON that are set here."""
    return {
        name: value for name, value in os.environ.items() if name.upper().startswith(PASSED_ON) and "\n" not in value
    }
