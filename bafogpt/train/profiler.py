"""A profile of a few steps: a trace for Chrome's viewer, and a table of the slowest operators.

Rank 0 writes ``profile/0001-step-00000004.json.gz`` and ``.txt`` in the trainer's folder, named by the attempt and the
first step that was traced. Files are written atomically. Open a trace at ``chrome://tracing`` or
https://ui.perfetto.dev.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from bafogpt.core import files
from bafogpt.core.errors import BafoError

WAIT, WARM_UP = 2, 1
"""Steps before the trace: kernels are compiled in the first ones, and the profiler's own first step is slow."""
ROWS = 25


class StepProfiler:
    """Traces ``steps`` steps of this process, after its first three; with 0 it does nothing.

    An attempt is traced once, also if its process is restarted. The traced steps are slower, and writing takes some
    seconds after them. If writing fails, training continues.
    """

    def __init__(self, folder: Path, *, steps: int, attempt: int, done: int) -> None:
        """``done`` is the number of steps already done."""
        self._folder = folder
        self._stem = f"{attempt:04d}-step-{done + WAIT + WARM_UP + 1:08d}"
        self._profiler: Any = None
        if steps and not any(folder.glob(f"{attempt:04d}-*")):
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,
            )
            self._profiler.start()

    def step(self, *, last: bool = False) -> bool:
        """Count a step. Returns whether the trace was written now; at the ``last`` step it is written incomplete."""
        profiler = self._profiler
        if profiler is None:
            return False
        if last:
            profiler.stop()
        else:
            profiler.step()
        return self._profiler is None

    def _write(self, profiler: Any) -> None:
        self._profiler = None
        trace, table = self._folder / f"{self._stem}.json.gz", self._folder / f"{self._stem}.txt"
        partial = self._folder / f".{trace.name}"  # the suffix selects compression
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(partial))
            files.write_atomic(table, _operators(profiler))
            partial.replace(trace)
        except (OSError, RuntimeError, BafoError) as error:
            print(f"no trace: {error}", flush=True)
            with contextlib.suppress(OSError):
                partial.unlink()
        else:
            print(f"traced {self._stem.partition('-')[2]} and those after it: profile/{trace.name}", flush=True)


def _operators(profiler: Any) -> str:
    """The operators with the most time of their own, on the GPU if there is one, over all traced steps."""
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)) + "\n"
