"""The learning rate as a function of the step, and of nothing else: a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from bafogpt.train.config import ScheduleConfig


def learning_rate(step: int, *, peak: float, steps: int, schedule: ScheduleConfig) -> float:
    """The rate for optimizer step ``step`` (0-based) of ``steps``.

    Linear from ``peak / warmup`` to ``peak``, then to ``final_ratio * peak`` at the last step: half a cosine
    (Loshchilov & Hutter 2017, without restarts), or level and then a straight line (Hu et al. 2024, arXiv:2404.06395).
    A warm-up longer than the run never reaches the peak. From ``restart_at`` on all of it begins anew.
    """
    if step >= schedule.restart_at:
        step, steps = step - schedule.restart_at, steps - schedule.restart_at
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "wsd":
        decay = max(1, round(steps * schedule.decay_share))
        left = min(1.0, (steps - 1 - step) / decay)
    else:
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * left)
