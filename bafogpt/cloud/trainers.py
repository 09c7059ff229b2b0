"""The trainer processes of one machine, as one thing: started together, ended together."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bafogpt.core import process

WORKER = (sys.executable, "-m", "bafogpt.train.worker")


def gpu_count() -> int:
    """GPUs that this machine shows; 0 where there is no driver. Asks ``nvidia-smi``, because torch takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


class Trainers:
    """``count`` worker processes with torchrun's variables, their output line by line to ``say``.

    Each gets SIGKILL from the kernel when this process ends, whatever ends it.
    """

    def __init__(self, folder: Path, count: int, say: Callable[[str], None], command: Sequence[str] = WORKER) -> None:
        port = _free_port()
        self._processes = [_start([*command, str(folder)], rank, count, port) for rank in range(count)]
        self._readers = [
            threading.Thread(target=_read, args=(each, f"[rank {rank}] " if count > 1 else "", say), daemon=True)
            for rank, each in enumerate(self._processes)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self._processes]

    def running(self) -> bool:
        """Whether all are still at work. One that failed takes the others with it, for they wait for it."""
        codes = [each.poll() for each in self._processes]
        return any(code is None for code in codes) and not any(codes)

    def exit_codes(self) -> list[int | None]:
        """One a rank: negative for a signal, None while it lives."""
        return [each.poll() for each in self._processes]

    def signal(self, number: int) -> None:
        """Send a signal to all that live."""
        for each in self._processes:
            if each.poll() is None:
                os.kill(each.pid, number)

    def end(self) -> None:
        """Kill what is left, with whatever it started, and collect the last output."""
        for each in self._processes:
            below = process.descendants(each.pid)
            if each.poll() is None:
                each.kill()
            process.end(below, grace_s=0)
        for each, reader in zip(self._processes, self._readers, strict=True):
            each.wait()
            reader.join(timeout=2)


def describe_exit(codes: list[int | None]) -> str:
    """The first bad exit in words: ``rank 0 was killed by SIGKILL``."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            return f"rank {rank} was killed by {signal.Signals(-code).name}"
        if code:
            return f"rank {rank} ended with exit code {code}"
    return "all ended"


def _start(command: list[str], rank: int, count: int, port: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=process.die_with_parent(),
    )


def _read(worker: subprocess.Popen[str], prefix: str, say: Callable[[str], None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        say(prefix + line.rstrip("\n"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
