"""One trainer process: ``python -m bafogpt.train.worker FOLDER``, started by the supervisor on each device.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as torchrun sets them. However it ends, a process
that still can writes down why: the supervisor decides by that whether another try can help.
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
"""What may be gone at the next try: a server that was away, a file that was torn on this disk."""
PERMANENT = ("OutOfResources", "FailOnRecompileLimitHit")
"""Class names of errors that the same program meets again on the same GPU: a kernel that needs more shared memory than
there is (triton), a model that is compiled for too many shapes (torch._dynamo). Named, so that neither is imported."""
PERMANENT_AT_START = (TypeError, ValueError, AttributeError, NotImplementedError, ImportError)
"""A program that fails like this before its first step does so again."""
OUT_OF_MEMORY_HINT = (
    "--set train.batch.micro_batch_size=1, or train.activation_checkpointing=full, or a GPU with more memory"
)


def main(folder: Path, stop: StopFlag) -> int:
    """Train as the order in ``folder`` says. Returns the process's exit code."""
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
    """Whether starting the same trainer again on this machine may end otherwise.

    It may after what a GPU, a driver or a network did (RuntimeError, OSError). It does not where the program itself is
    the cause. ``trained`` says whether a step was done in this attempt: memory that was enough once may be again.
    """
    chain = list(_chain(error))
    if any(type(each).__name__ in PERMANENT or "OutOfResources" in str(each) for each in chain):
        return False  # Inductor puts triton's error into the text of its own
    at_start = any(map(is_out_of_memory, chain)) or isinstance(error, PERMANENT_AT_START)
    return trained or not at_start


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _has_trained(trainer_files: TrainerFiles) -> bool:
    """Whether this attempt has written metrics of a step. Node 0 alone writes them, so other nodes leave the decision
    to it: the trainers there meet the same error."""
    if os.environ.get("GROUP_RANK", "0") != "0":
        return True
    try:
        return trainer_files.metrics(trainer_files.read_order().attempt).stat().st_size > 0
    except (OSError, ValueError, BafoError):
        return False


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where is every thread? asked before a hung process is killed
    flag = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: flag.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    code = main(Path(sys.argv[1]), flag)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no wait for library threads: all that matters is on disk
