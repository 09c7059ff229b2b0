"""The process of one part: ``python -m benchmarks.gpu_check.part FOLDER``, with what to do in ``FOLDER/task.json``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.gpu_check.report import Options, Report


def main() -> None:
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    report = Report(
        to=folder / "found.jsonl",
        seconds=task["seconds"],
        options=Options(**task["options"]),
        earlier=task["earlier"],
    )
    module, _, function = task["function"].partition(":")
    getattr(importlib.import_module(module), function)(report, **task["arguments"])
    report.finish()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no wait for process groups and compiler processes
