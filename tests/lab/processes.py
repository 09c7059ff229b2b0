"""Who belongs to a lab, and the end of all of them.

Daemons fork, SkyPilot's server restarts itself, its workers and ssh's masters rename themselves, and any of them may
have been killed with ``kill -9`` and left orphans. So nothing is kept about them: they are found each time in /proc, by
the lab's mark in their environment, by the lab's folder in their command line, by the lab's user, or as children of
such. Not by the mark alone: a person's editor that was started in a shell with the lab's environment has it too.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.config import MARK, LabConfig

WORKERS = re.compile(
    rb"(^|^: |/)(slurm|munged|sshd)|(\b|-m)sky\.(server|jobs|skylet|serve|utils)|SkyPilot|skylet|podcloud"
    rb"|multiprocessing\.(spawn|forkserver|resource_tracker) import"  # of a server that was killed
)
"""What a command line with the mark must contain to be the lab's and not a person's."""


@dataclass(frozen=True)
class Process:
    """One line of the process list."""

    pid: int
    parent: int
    uid: int
    command: bytes
    environment: bytes

    def __str__(self) -> str:
        return f"{self.pid} {self.command.decode(errors='replace')[:160]}"


def everyone() -> dict[int, Process]:
    """Every living process with a command line; kernel threads have none, zombies neither."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip()
            status = (folder / "status").read_text()
            if not command or "\nState:\tZ" in status:
                continue
            parent = int(status.split("\nPPid:", 1)[1].split(None, 1)[0])
            uid = int(status.split("\nUid:", 1)[1].split(None, 1)[0])
            found[int(folder.name)] = Process(
                int(folder.name), parent, uid, command, b"\0" + (folder / "environ").read_bytes()
            )
    return found


def of_lab(config: LabConfig, uid: int | None = None, user: str | None = None) -> list[Process]:
    """The living processes of a lab; never this one or one that it was started by."""
    all_of_them = everyone()
    above = set(_ancestors(os.getpid(), all_of_them))
    mark = f"\0{MARK}={config.folder}\0".encode()
    signs = [f"{config.folder}/".encode(), f"sky_ssh_{config.user_hash}".encode()]
    if user:
        signs.append(f"sshd: {user}".encode())

    def is_root(process: Process) -> bool:
        if process.uid == uid or (mark in process.environment + b"\0" and WORKERS.search(process.command)):
            return True
        name = process.command.split(b" ", 1)[0].rsplit(b"/", 1)[-1]
        service = name in (b"ssh:", b"sshd:", b"sshd", b"munged", b"conmon") or name.startswith((b"python", b"uv"))
        return service and any(sign in process.command for sign in signs)

    mine = {pid for pid, process in all_of_them.items() if is_root(process)}
    while more := {p.pid for p in all_of_them.values() if p.parent in mine and p.pid not in mine}:
        mine |= more
    return [all_of_them[pid] for pid in sorted(mine - above)]


def marked(config: LabConfig) -> set[int]:
    """Every process that the lab's mark has come to, whatever it is."""
    mark = f"\0{MARK}={config.folder}\0".encode()
    return {pid for pid, process in everyone().items() if mark in process.environment + b"\0"}


def _ancestors(pid: int, processes: dict[int, Process]) -> Iterable[int]:
    while pid > 0:
        yield pid
        pid = processes[pid].parent if pid in processes else 0


def end(config: LabConfig, uid: int | None = None, user: str | None = None, grace_s: float = 3.0) -> list[Process]:
    """End every process of the lab: ask for ``grace_s`` seconds, then kill. Returns those that would not go."""
    began = time.monotonic()
    asked: set[int] = set()
    while left := of_lab(config, uid, user):
        age = time.monotonic() - began
        if age > grace_s + 10:
            break
        for process in left:
            kill = age > grace_s
            if kill or process.pid not in asked:
                asked.add(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        time.sleep(0.1)
    return left
