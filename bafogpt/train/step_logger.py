"""What a run says about its steps: speed, loss; and the stop when the numbers are no numbers any more.

A GPU works behind the host, which has only to keep giving it work. So the numbers of a step are asked for at once and
read when the next step has been given: by then they are there, or the GPU has something to do while the host waits.
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
"""Lines that the running mean of the loss remembers, about."""


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are on their way to the host."""

    numbers: torch.Tensor
    """[2] float32 in host memory: loss and gradient norm of the whole step, once ``arrived`` has happened."""
    arrived: torch.cuda.Event | None
    """None where they are there already."""
    done: float
    """When the host was done with it, s; on a CPU that is when the step was done."""
    step: int
    samples: tuple[int, int]
    """[first, last) since the line before."""
    rate: float


class StepLogger:
    """Measures the time between lines and writes them. Every process has one; only rank 0's has ``lines``."""

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
        self._waiting: PendingStep | None = None

    def step(self, measured: metrics.StepMetrics) -> None:
        """Ask for the numbers of the step just given to the device; :meth:`settle` reads them. Waits for nothing."""
        self.settle()
        numbers = parallel.step_totals(measured.loss, measured.norm).to("cpu", non_blocking=True)
        arrived = None
        if measured.loss.is_cuda:
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        first, self._first = self._first, self._progress.samples
        samples = (first, self._progress.samples)
        self._waiting = PendingStep(numbers, arrived, time.perf_counter(), self._progress.step, samples, measured.rate)

    def settle(self) -> None:
        """Write down the step whose numbers were asked for, if there is one; the loop's only wait for the device.

        Raises :class:`BafoError` when they say that the run went wrong, naming the samples since the line before. So
        this comes before anything that is kept: a checkpoint never holds a step that has not been looked at.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        now = waiting.done
        if waiting.arrived is not None:
            waiting.arrived.synchronize()
            now = time.perf_counter()
        loss, norm = waiting.numbers.tolist()
        config, progress = self._config, self._progress
        taken = now - self._started
        progress.seconds = self._seconds_before + taken
        first, end = waiting.samples
        speed = (end - first) * config.data.sequence_length / (now - self._window)
        self._window = now
        stage = metrics.stage_at(self._curriculum, (end - 1) * config.data.sequence_length)
        self._guard(loss, norm, f"at step {waiting.step} ({stage}), samples {first} to {end - 1}")
        self.write(
            step=waiting.step,
            samples=[first, end],
            tokens=waiting.step * config.batch.tokens,
            stage=stage,
            loss=loss,
            learning_rate=waiting.rate,
            gradient_norm=norm,
            tokens_per_s=speed,
            mfu=speed * self._flops_per_token / self._peak_flops,
            seconds=progress.seconds,
        )

    def _guard(self, loss: float, norm: float, where: str) -> None:
        """Take the loss into the running mean, or stop: what is in the bucket was saved before it went wrong."""
        guard, progress = self._config.guard, self._progress
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise BafoError(
                f"loss {loss}, gradient norm {norm} {where}; the last checkpoint is good",
                "lower train.optimizer.learning_rate and launch again with --resume",
            )
        trusted = guard.spike_ratio is not None and progress.losses >= guard.after_steps
        if trusted and loss > (guard.spike_ratio or 0) * progress.loss_mean:
            raise BafoError(
                f"loss {loss:.4f} {where} is over {guard.spike_ratio:g} x the running mean {progress.loss_mean:.4f}; "
                "the last checkpoint is good",
                "look at those samples; train.guard.spike_ratio=null goes on all the same, with --resume",
            )
        progress.losses += 1
        progress.loss_mean += (loss - progress.loss_mean) / min(progress.losses, MEAN_OVER)

    def write(self, **values: Any) -> None:
        """One line, from rank 0."""
        if self._lines is not None:
            self._lines.write(**values)

    def restart_clock(self) -> None:
        """What was done since the last step is not training: leave it out of the speed."""
        self.settle()
        self._window = time.perf_counter()
