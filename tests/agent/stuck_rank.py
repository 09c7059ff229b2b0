"""The process of the all-reduce check, wrong in a way that BROKEN names: ``python stuck_rank.py DEVICE FOLDER``.

``absent`` lets rank 1 say that it is ready and never join; ``crash`` ends rank 1 with an error; ``p2p`` does the
former unless NCCL_P2P_DISABLE is 1; ``wrong`` has rank 1 add something else than it should; ``slow`` needs long to
import torch. It runs on the CPU whatever DEVICE says.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading

from bafogpt.train.probes import collective_check


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    broken = os.environ.get("BROKEN", "")
    if broken == "slow":
        threading.Event().wait()
    if os.environ["RANK"] == "1":
        if broken == "absent" or (broken == "p2p" and os.environ.get("NCCL_P2P_DISABLE") != "1"):
            print("ready")
            print("still looking for GPU 0")
            threading.Event().wait()
        if broken == "crash":
            print("ready")
            sys.exit("ncclUnhandledCudaError: Call to CUDA function failed")
        if broken == "wrong":
            import torch.distributed as dist

            dist.get_rank = lambda *_: 7  # type: ignore[assignment]
    collective_check.main("cpu")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
