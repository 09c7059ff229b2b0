"""A first all-reduce with a deadline: ``python -m bafogpt.train.probes.collective_check DEVICE FOLDER`` on each GPU.

With broken peer-to-peer traffic (PCIe ACS, IOMMU) or a wrong network interface the first collective hangs without an
error. The supervisor runs this module on its machine before it fetches anything, and kills it at a deadline. Trainers
then do the same all-reduce over all nodes, under :func:`deadline`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bafogpt.core.errors import ExitCode, UnfitMachineError
from bafogpt.train.trainer_io import TrainerFiles, WorkerResult

if TYPE_CHECKING:
    import torch

READY = "ready"
"""Printed once torch is imported; the deadline counts from there."""
BYTES = {"cuda": 64 << 20, "cpu": 4 << 20}
"""Message size by device type; on a GPU large enough to measure bandwidth, not latency."""
ROUNDS = 5


def all_reduce(device: torch.device) -> float:
    """Sum a tensor over all processes of the default group, check the sum, and return the bus bandwidth in GB/s.

    Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md): bytes ÷ seconds x 2(n - 1) ÷ n.
    Raises :class:`UnfitMachineError` where the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    processes, rank = dist.get_world_size(), dist.get_rank()
    values = torch.empty(BYTES[device.type] // 4, dtype=torch.float32, device=device)
    expected = processes * (processes + 1) / 2
    fastest = float("inf")
    for _ in range(1 + ROUNDS):  # the first one sets up connections
        values.fill_(rank + 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        dist.all_reduce(values)
        low, high = float(values.min()), float(values.max())  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
        if not low == high == expected:
            raise UnfitMachineError(
                f"an all-reduce over {processes} processes gave sums between {low:g} and {high:g} in place of "
                f"{expected:g}: the GPUs exchange wrong data",
                "bafogpt cloud launch … --resume on another machine",
            )
    return BYTES[device.type] / fastest * 2 * (processes - 1) / processes / 1e9


@contextlib.contextmanager
def deadline(seconds: float, trainer_files: TrainerFiles) -> Iterator[None]:
    """End this trainer process, as unfit for a retry, when the block takes longer than ``seconds`` (0 is no limit).

    A thread blocked in NCCL or gloo cannot be interrupted, so the process exits.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not seconds or processes == 1:
        yield
        return

    def expire() -> None:
        message = f"the first all-reduce over {processes} processes did not end within {seconds:g} s"
        hint = "another cloud or region, or export NCCL_SOCKET_IFNAME=INTERFACE and --env NCCL_SOCKET_IFNAME"
        print(f"error: {message}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        result = WorkerResult("failed", 0, 0, message, hint, int(ExitCode.MACHINE_UNFIT), retry=False)
        trainer_files.write_result(int(os.environ.get("RANK", "0")), result)
        os._exit(ExitCode.MACHINE_UNFIT)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(kind: str) -> None:
    """One process of the check; rank 0 prints a JSON object with ``gb_per_s`` last."""
    import torch
    import torch.distributed as dist

    print(READY)
    device = torch.device(kind, int(os.environ["LOCAL_RANK"]) if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        print(f"CUDA works on {torch.cuda.get_device_name(device)}, joining the others")
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    print("joined the others, in the all-reduce")
    try:
        speed = all_reduce(device)
    except UnfitMachineError as error:
        sys.exit(f"error: {error.message}")
    if dist.get_rank() == 0:
        print(json.dumps({"gb_per_s": round(speed, 3)}))


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # destroying the process group may wait for other processes
