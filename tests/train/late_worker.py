"""The real worker, whose rank 1 never joins the others: ``python late_worker.py FOLDER``."""

from __future__ import annotations

import os
import runpy
import threading

if os.environ["RANK"] == "1":
    threading.Event().wait()
runpy.run_module("bafogpt.train.worker", run_name="__main__", alter_sys=True)
