"""The learning rate as a function of the step, and of nothing else: a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from bafogpt.train.config import ScheduleConfig


def learning_rate(step: int, *, peak: float, steps: int, schedule: ScheduleConfig) -> float:
    """The rate for optimizer step ``step`` (0-based) of ``steps``.

    Linear from ``peak / warmup`` to ``peak``, then half a cosine to ``final_ratio * peak`` at the last step
    (Loshchilov & Hutter 2017, without restarts). A warm-up longer than the run never reaches the peak.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * cosine)
