"""The real worker around a loop that hangs: ``python hung_worker.py FOLDER``."""

from __future__ import annotations

import runpy
import sys
import threading
import types


def train(*_: object) -> None:
    print("at work", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    loop = types.ModuleType("bafogpt.train.loop")
    loop.train = train  # type: ignore[attr-defined]
    sys.modules["bafogpt.train.loop"] = loop
    runpy.run_module("bafogpt.train.worker", run_name="__main__", alter_sys=True)
