"""Logs steps: speed and loss; stops the run when the loss goes wrong.

A GPU works behind the host, which only has to keep it busy. So a step's numbers are copied asynchronously and read
after the next step is launched: by then they have arrived, or the GPU has work while the host waits.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric

from bafogpt.core.errors import BafoError
from bafogpt.storage.tokens.manifest import Split
from bafogpt.train import metrics, parallel
from bafogpt.train.config import TrainConfig
from bafogpt.train.state import TrainProgress

MEAN_OVER = 50
"""Lines that the running mean of the loss covers, about."""


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are being copied to the host."""

    numbers: torch.Tensor
    """[2] float32 in host memory: loss and gradient norm of the whole step, valid after ``copied``."""
    copied: torch.cuda.Event | None
    """None on a CPU."""
    time: float
    """When the host had launched the step, s; on a CPU, when it was done."""
    step: int
    samples: tuple[int, int]
    """[first, last) since the line before."""
    rate: float


class StepLogger:
    """Measures the time between lines and writes them. Every process has one; only rank 0 has ``lines``."""

    def __init__(
        self,
        config: TrainConfig,
        fabric: Fabric,
        progress: TrainProgress,
        *,
        curriculum: Split,
        lines: metrics.MetricsLog | None,
        flops_per_token: float,
    ) -> None:
        self._config = config
        self._fabric = fabric
        self._progress = progress
        self._curriculum = curriculum
        self._lines = lines
        self._flops_per_token = flops_per_token
        self._peak_flops = metrics.peak_flops(fabric.device, config.precision) * fabric.world_size
        self._first = progress.samples
        self._started = self._window = time.perf_counter()
        self._seconds_before = progress.seconds
        self._pending: PendingStep | None = None

    def step(self, measured: metrics.StepMetrics) -> None:
        """Start to copy the numbers of the step just launched; :meth:`flush` reads them. Does not wait."""
        self.flush()
        numbers = parallel.step_totals(measured.loss, measured.norm).to("cpu", non_blocking=True)
        copied = None
        if measured.loss.is_cuda:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        samples, self._first = (self._first, self._progress.samples), self._progress.samples
        self._pending = PendingStep(numbers, copied, time.perf_counter(), self._progress.step, samples, measured.rate)

    def flush(self) -> None:
        """Write the pending step's line, if there is one: the loop's only wait for the device.

        Raises :class:`BafoError` when the loss went wrong, naming the samples since the line before. This is called
        before a checkpoint is saved, so that none holds a step whose loss was not checked.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        now = pending.time
        if pending.copied is not None:
            pending.copied.synchronize()
            now = time.perf_counter()
        loss, norm = pending.numbers.tolist()
        config, (first, end) = self._config, pending.samples
        self._progress.seconds = self._seconds_before + now - self._started
        speed = (end - first) * config.data.sequence_length / (now - self._window)
        self._window = now
        stage = metrics.stage_at(self._curriculum, (end - 1) * config.data.sequence_length)
        self._check_loss(loss, norm, f"at step {pending.step} ({stage}), samples {first} to {end - 1}")
        self.write(
            step=pending.step,
            samples=[first, end],
            tokens=pending.step * config.batch.tokens,
            stage=stage,
            loss=loss,
            learning_rate=pending.rate,
            gradient_norm=norm,
            tokens_per_s=speed,
            mfu=speed * self._flops_per_token / self._peak_flops,
            seconds=self._progress.seconds,
        )

    def _check_loss(self, loss: float, norm: float, where: str) -> None:
        """Add the loss to the running mean; raise :class:`BafoError` where it is not finite, or a spike."""
        ratio, progress = self._config.guard.spike_ratio, self._progress
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise BafoError(
                f"loss {loss}, gradient norm {norm} {where}; the last checkpoint is good",
                "lower train.optimizer.learning_rate and launch again with --resume",
            )
        trusted = progress.losses >= self._config.guard.after_steps
        if ratio is not None and trusted and loss > ratio * progress.loss_mean:
            raise BafoError(
                f"loss {loss:.4f} {where} is over {ratio:g} x the running mean {progress.loss_mean:.4f}; "
                "the last checkpoint is good",
                "inspect those samples; train.guard.spike_ratio=null turns this check off, with --resume",
            )
        progress.losses += 1
        progress.loss_mean += (loss - progress.loss_mean) / min(progress.losses, MEAN_OVER)

    def write(self, **values: Any) -> None:
        """Write one line, on rank 0."""
        if self._lines is not None:
            self._lines.write(**values)

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the speed: it was not training."""
        self.flush()
        self._window = time.perf_counter()
