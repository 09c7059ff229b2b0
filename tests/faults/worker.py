"""A trainer under test: ``python worker.py [--torch] FOLDER``. The real worker, made mortal; the loop real or tiny."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults import points

if __name__ == "__main__":
    points.arm("trainer")
    if "--torch" in sys.argv:
        sys.argv.remove("--torch")
    else:
        from tests.faults import tiny_loop

        sys.modules["bafogpt.train.loop"] = tiny_loop
    runpy.run_module("bafogpt.train.worker", run_name="__main__", alter_sys=True)
