"""The real worker, whose rank 1 does not take part in the first all-reduce: ``python late_worker.py FOLDER``."""

from __future__ import annotations

import os
import runpy
import threading

from bafogpt.train.probes import collective_check

if os.environ["RANK"] == "1":
    collective_check.all_reduce = lambda _: threading.Event().wait()  # type: ignore[assignment,return-value]
runpy.run_module("bafogpt.train.worker", run_name="__main__", alter_sys=True)
