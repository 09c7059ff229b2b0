"""ssh, rsync and port forwarding to a rented machine, with the ssh configuration that SkyPilot writes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def options(cluster: str) -> list[str]:
    """The options of ``ssh`` for a cluster: SkyPilot's configuration file and key.

    Both as full paths, because ssh expands ``~`` by the password database, not by HOME.
    """
    generated = Path(os.path.expanduser("~/.sky/generated"))
    return [
        *("-F", str(generated / "ssh" / cluster)),
        *("-o", f"IdentityFile={generated / 'ssh-keys' / cluster}.key"),
        *("-o", "LogLevel=ERROR"),
    ]


def shell(cluster: str, command: Sequence[str], node: int) -> list[str]:
    """``ssh`` to a node (0 is the head), for a terminal or for ``command``."""
    host = cluster if node == 0 else f"{cluster}-worker{node}"
    words = ["ssh", *options(cluster), host]
    return [*words, "--", shlex.join(command)] if command else words


def copy(cluster: str, source: str, target: str, *, upload: bool) -> list[str]:
    """``rsync`` of a file or folder; an interrupted transfer is resumed."""
    remote = shlex.join(["ssh", *options(cluster)])
    words = ["rsync", "-a", "--partial", "--info=progress2", "-e", remote, "--"]
    here, there = (source, f"{cluster}:{target}") if upload else (f"{cluster}:{source}", target)
    return [*words, here, there]


def forward(cluster: str, here: int, there: int) -> list[str]:
    """``ssh -L`` from port ``here`` of this machine to port ``there`` of the head."""
    words = ["-N", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
    return ["ssh", *options(cluster), *words, "-L", f"127.0.0.1:{here}:127.0.0.1:{there}", cluster]


_SIGTERM_SUPERVISOR = """
import os, signal, sys
run, found = sys.argv[1].encode(), 1
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    own = words[1:4] and words[1].endswith(b"/bafogpt") and words[2:4] == [b"job", b"run"]
    if own and run in [after for word, after in zip(words, words[1:]) if word == b"--run"]:
        os.kill(int(pid), signal.SIGTERM)
        found = 0
sys.exit(found)
"""


def stop_command(run: str) -> list[str]:
    """The command that sends SIGTERM to a run's supervisor on its machine; it fails where there is none.

    It reads /proc, because an image may lack ``pkill`` but SkyPilot needs ``python3``; and it matches the supervisor's
    own process only, because SkyPilot's wrappers have the same words in their command lines.
    """
    return ["python3", "-c", _SIGTERM_SUPERVISOR, run]
