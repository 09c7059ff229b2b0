"""What a run says about its steps: speed, loss, money; and the stop when the numbers are no numbers any more."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from lightning.fabric import Fabric

from bafogpt.core.errors import BafoError
from bafogpt.storage.tokens.manifest import Split
from bafogpt.train import metrics, parallel
from bafogpt.train.config import TrainConfig
from bafogpt.train.state import Progress

if TYPE_CHECKING:
    from bafogpt.train.step import Measured


MEAN_OVER = 50
"""Lines that the running mean of the loss remembers, about."""


class RunLog:
    """Measures the time between lines and writes them. Every process has one; only rank 0's has ``lines``."""

    def __init__(
        self,
        config: TrainConfig,
        fabric: Fabric,
        progress: Progress,
        *,
        curriculum: Split,
        lines: metrics.MetricsLog | None,
        flops_per_token: float,
        price_per_hour: float,
    ) -> None:
        self._config = config
        self._fabric = fabric
        self._progress = progress
        self._curriculum = curriculum
        self._lines = lines
        self._flops_per_token = flops_per_token
        self._peak_flops = metrics.peak_flops(fabric.device) * fabric.world_size
        self._price_per_hour = price_per_hour
        self._first = progress.samples
        self._started = self._window = time.perf_counter()
        self._before = (progress.seconds, progress.usd)

    def step(self, measured: Measured) -> None:
        """Bring the step's numbers to the host (the loop's only wait for the device) and write them down.

        Raises :class:`BafoError` when they say that the run went wrong, naming the samples since the last line.
        """
        config, progress = self._config, self._progress
        loss = parallel.summed(self._fabric, measured.loss)
        norm = parallel.on_host(measured.norm)
        now = time.perf_counter()
        taken = now - self._started
        progress.seconds = self._before[0] + taken
        progress.usd = self._before[1] + taken / 3600 * self._price_per_hour
        first, self._first = self._first, progress.samples
        speed = (progress.samples - first) * config.data.sequence_length / (now - self._window)
        self._window = now
        stage = metrics.stage_at(self._curriculum, (progress.samples - 1) * config.data.sequence_length)
        self._guard(loss, norm, f"at step {progress.step} ({stage}), samples {first} to {progress.samples - 1}")
        self.write(
            step=progress.step,
            samples=[first, progress.samples],
            tokens=progress.step * config.batch.tokens,
            stage=stage,
            loss=loss,
            learning_rate=measured.rate,
            gradient_norm=norm,
            tokens_per_s=speed,
            mfu=speed * self._flops_per_token / self._peak_flops,
            seconds=progress.seconds,
            usd=progress.usd,
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
        """What was done since the last line is not training: leave it out of the speed."""
        self._window = time.perf_counter()
