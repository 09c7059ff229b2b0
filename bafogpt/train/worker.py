"""One trainer process: ``python -m bafogpt.train.worker FOLDER``, started by the supervisor on each device.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as torchrun sets them. A process that fails writes
its error and whether a retry can help, for the supervisor.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from bafogpt.core.errors import BafoError, CorruptError, ExitCode, UnreachableError
from bafogpt.train.estimates.memory import is_out_of_memory
from bafogpt.train.trainer_io import StopFlag, TrainerFiles, WorkerResult

RETRYABLE = (UnreachableError, CorruptError)
"""Errors that may be gone at the next try: an unreachable server, a torn file on this disk."""
PERMANENT = ("OutOfResources", "FailOnRecompileLimitHit")
"""Names of errors that come again on the same GPU: a kernel that needs more shared memory than the GPU has (triton),
a model that is compiled for too many shapes (torch._dynamo)."""
PERMANENT_AT_START = (TypeError, ValueError, AttributeError, NotImplementedError, ImportError)
"""Errors that come again if they came before the first step."""
OUT_OF_MEMORY_HINT = (
    "--set train.batch.micro_batch_size=1, or train.activation_checkpointing=full, or a GPU with more memory"
)


def main(folder: Path, stop: StopFlag) -> int:
    """Train by the order in ``folder``. Returns the exit code."""
    trainer_files = TrainerFiles(folder)
    try:
        from bafogpt.train.loop import train  # takes seconds; SIGTERM is handled already

        result = train(trainer_files.read_order(), trainer_files, stop)
    except BafoError as error:
        print(f"error: {error.message}", file=sys.stderr)
        retry = isinstance(error, RETRYABLE)
        result = WorkerResult("failed", 0, 0, error.message, error.hint, int(error.exit_code), retry)
    except Exception as error:
        traceback.print_exc()
        retry = is_retryable(error, trained=_has_trained(trainer_files))
        hint = OUT_OF_MEMORY_HINT if is_out_of_memory(error) else ""
        result = WorkerResult("failed", 0, 0, f"{type(error).__name__}: {error}", hint, int(ExitCode.FAILURE), retry)
    trainer_files.write_result(int(os.environ.get("RANK", "0")), result)
    return result.exit_code


def is_retryable(error: BaseException, *, trained: bool) -> bool:
    """Whether a restart of the trainer on this machine can help.

    It can after an error of a GPU, a driver or a network (RuntimeError, OSError), but not after one of the program.
    ``trained`` is whether this attempt has done a step: memory that was enough once may be again.
    """
    chain = list(_chain(error))
    if any(type(each).__name__ in PERMANENT or "OutOfResources" in str(each) for each in chain):
        return False  # Inductor puts triton's error into the text of its own
    at_start = any(map(is_out_of_memory, chain)) or isinstance(error, PERMANENT_AT_START)
    return trained or not at_start


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _has_trained(trainer_files: TrainerFiles) -> bool:
    """Whether this attempt has written metrics of a step. Only node 0 writes them; its trainers meet the same error, so
    other nodes leave the decision to it."""
    if os.environ.get("GROUP_RANK", "0") != "0":
        return True
    try:
        return trainer_files.metrics(trainer_files.read_order().attempt).stat().st_size > 0
    except (OSError, ValueError, BafoError):
        return False


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks for stacks before it kills a hung process
    flag = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: flag.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    code = main(Path(sys.argv[1]), flag)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # do not wait for library threads: everything is on disk
