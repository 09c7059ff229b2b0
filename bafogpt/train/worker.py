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
from pathlib import Path

from bafogpt.core.errors import BafoError, CorruptError, ExitCode, UnreachableError
from bafogpt.train.handoff import Handoff, Result, StopFlag

RETRY_HELPS = (UnreachableError, CorruptError)
"""What may be gone at the next try: a server that was away, a file that was torn on this disk."""


def main(folder: Path, stop: StopFlag) -> int:
    """Train as the order in ``folder`` says. Returns the process's exit code."""
    handoff = Handoff(folder)
    try:
        from bafogpt.train.loop import train  # takes seconds; SIGTERM is handled already

        result = train(handoff.read_order(), handoff, stop)
    except BafoError as error:
        print(f"error: {error.message}", file=sys.stderr)
        retry = isinstance(error, RETRY_HELPS)
        result = Result("failed", 0, 0, error.message, error.hint, int(error.exit_code), retry)
    except Exception as error:
        traceback.print_exc()
        result = Result("failed", 0, 0, f"{type(error).__name__}: {error}", "", int(ExitCode.FAILURE), retry=True)
    handoff.write_result(int(os.environ.get("RANK", "0")), result)
    return result.exit_code


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where is every thread? asked before a hung process is killed
    flag = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: flag.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    code = main(Path(sys.argv[1]), flag)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no wait for library threads: all that matters is on disk
