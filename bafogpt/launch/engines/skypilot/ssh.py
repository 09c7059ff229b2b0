"""Into a rented machine: ssh, copies and ports through the configuration that SkyPilot writes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def options(cluster: str) -> list[str]:
    """What ``ssh`` must be told: SkyPilot's file of this cluster, and its key.

    Both by their full paths: ssh looks for ``~`` in the password database, which is not where HOME points everywhere.
    """
    generated = Path(os.path.expanduser("~/.sky/generated"))
    return [
        *("-F", str(generated / "ssh" / cluster)),
        *("-o", f"IdentityFile={generated / 'ssh-keys' / cluster}.key"),
        *("-o", "LogLevel=ERROR"),
    ]


def host(cluster: str, node: int) -> str:
    """The name of a node in SkyPilot's file; 0 is the head."""
    return cluster if node == 0 else f"{cluster}-worker{node}"


def shell(cluster: str, command: Sequence[str], node: int) -> list[str]:
    """``ssh`` for a terminal, or for a command whose words arrive as they are."""
    words = ["ssh", *options(cluster), host(cluster, node)]
    return [*words, "--", shlex.join(command)] if command else words


def copy(cluster: str, source: str, target: str, *, upload: bool) -> list[str]:
    """``rsync`` of a file or folder; a cut transfer goes on where it was."""
    remote = shlex.join(["ssh", *options(cluster)])
    words = ["rsync", "-a", "--partial", "--info=progress2", "-e", remote, "--"]
    here, there = (source, f"{cluster}:{target}") if upload else (f"{cluster}:{source}", target)
    return [*words, here, there]


def forward(cluster: str, here: int, there: int) -> list[str]:
    """``ssh`` that does nothing but carry a port; it ends when the machine does."""
    words = ["-N", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
    return ["ssh", *options(cluster), *words, "-L", f"127.0.0.1:{here}:127.0.0.1:{there}", cluster]


_ASK = """
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


def ask_to_stop(run: str) -> list[str]:
    """The command that sends SIGTERM to the supervisor of ``run`` on its machine; it fails where there is none.

    It reads /proc, for an image need not have ``pkill`` but SkyPilot needs ``python3``; and it looks for the
    supervisor's own process, because the words of its command are in those of SkyPilot's wrappers too.
    """
    return ["python3", "-c", _ASK, run]
