"""The trainer processes of one machine: started together, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bafogpt.agent.oom import OutOfMemory
from bafogpt.core import process

END_S = 5.0
"""How long to wait for a killed process."""
DUMP_S = 1.0
"""How long a hung process gets to print its stacks."""
WORKER = (sys.executable, "-m", "bafogpt.train.worker")


@dataclass(frozen=True, kw_only=True)
class RankLayout:
    """This machine's place among all nodes; every node has the same number of processes."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    """Of node 0, where the processes meet."""
    own: str = "127.0.0.1"
    """This machine's own address; processes communicate through the network interface that has it."""
    port: int = 0
    """0 is any free port of this machine."""
    rendezvous_id: str = ""
    """Identifies this start of all processes. Checkpoints carry it, so that parts of two starts are not mixed."""


class Workers:
    """``count`` worker processes with torchrun's variables and ``environment``, their output line by line to ``log``.

    Each gets SIGKILL from the kernel when this process ends, however it ends. Leaving the context ends them.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        log: Callable[[str], None],
        command: Sequence[str] = WORKER,
        layout: RankLayout = RankLayout(),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._first_rank = layout.node * count
        self._memory = OutOfMemory()
        shared = {**_environment(count, layout), **(environment or {})}
        self._processes = [_start([*command, str(folder)], rank, self._first_rank, shared) for rank in range(count)]
        many = count * layout.nodes > 1
        self._readers = [
            threading.Thread(target=_read, args=(each, f"[rank {rank}] " if many else "", log), daemon=True)
            for rank, each in enumerate(self._processes, start=self._first_rank)
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def running(self) -> bool:
        """Whether all are at work. One that failed ends the others, because they wait for it."""
        codes = self.exit_codes()
        return any(code is None for code in codes) and not any(codes)

    def exit_codes(self) -> list[int | None]:
        """One per rank: negative for a signal, None while it runs."""
        return [each.poll() for each in self._processes]

    def describe_exit(self, codes: list[int | None]) -> str:
        """The first failure among the exit codes: ``rank 0 was killed by SIGKILL``."""
        return describe_exit(codes, self._first_rank, out_of_memory=self._memory.happened())

    def signal(self, number: int) -> None:
        """Send a signal to all that run."""
        for each in self._processes:
            if each.poll() is None:
                os.kill(each.pid, number)

    def dump(self) -> None:
        """Have all print the stack of each thread to the log, and wait a second for it."""
        self.signal(signal.SIGUSR1)
        time.sleep(DUMP_S)

    def end(self) -> None:
        """Kill what still runs, with all that it started, and collect the last output."""
        for each in self._processes:
            below = process.descendants(each.pid)
            if each.poll() is None:
                each.kill()
            process.end(below, grace_s=0)
        for each, reader in zip(self._processes, self._readers, strict=True):
            with contextlib.suppress(subprocess.TimeoutExpired):  # one stuck in the driver does not die of SIGKILL
                each.wait(timeout=END_S)
            reader.join(timeout=2)


def describe_exit(codes: list[int | None], first_rank: int = 0, *, out_of_memory: bool = False) -> str:
    """The first failure among the exit codes of consecutive ranks."""
    for rank, code in enumerate(codes, start=first_rank):
        if code == -signal.SIGKILL and out_of_memory:
            return f"rank {rank} was killed by the kernel: this machine's memory was full"
        if code is not None and code < 0:
            return f"rank {rank} was killed by {signal.Signals(-code).name}"
        if code:
            return f"rank {rank} ended with exit code {code}"
    return "all ended"


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the IP address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def _environment(count: int, layout: RankLayout) -> dict[str, str]:
    """The variables that all processes of this machine share."""
    port = layout.port or free_port()
    interface = interface_of(layout.own) if layout.nodes > 1 else None
    through = {f"{library}_SOCKET_IFNAME": interface for library in ("GLOO", "NCCL")} if interface else {}
    allocator = {} if "PYTORCH_CUDA_ALLOC_CONF" in os.environ else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return {
        **allocator,  # without it, up to 7 GB of an L40 are lost to fragments (bafogpt/train/estimates/memory.py)
        **through,  # a machine has several interfaces, and libraries guess; the user's own setting comes first
        **os.environ,
        "WORLD_SIZE": str(count * layout.nodes),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": str(layout.node),
        "GROUP_WORLD_SIZE": str(layout.nodes),
        "MASTER_ADDR": layout.address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": layout.rendezvous_id or str(port),
        "PYTHONUNBUFFERED": "1",
    }


def _start(command: list[str], local: int, first_rank: int, shared: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**shared, "RANK": str(first_rank + local), "LOCAL_RANK": str(local)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=process.die_with_parent(),
    )


def _read(worker: subprocess.Popen[str], prefix: str, log: Callable[[str], None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        log(prefix + line.rstrip("\n"))
