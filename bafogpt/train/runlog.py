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
        self._seconds_before = progress.seconds

    def step(self, measured: Measured) -> None:
        """Bring the step's numbers to the host (the loop's only wait for the device) and write them down.

        Raises :class:`BafoError` when they are not finite, naming the samples since the last line.
        """
        config, progress = self._config, self._progress
        loss = parallel.summed(self._fabric, measured.loss)
        norm = parallel.on_host(measured.norm)
        now = time.perf_counter()
        progress.seconds = self._seconds_before + now - self._started
        first, self._first = self._first, progress.samples
        speed = (progress.samples - first) * config.data.sequence_length / (now - self._window)
        self._window = now
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise BafoError(
                f"loss {loss}, gradient norm {norm} at step {progress.step}, samples {first} to "
                f"{progress.samples - 1}; the last checkpoint is good",
                "lower train.optimizer.learning_rate and launch again with --resume",
            )
        self.write(
            step=progress.step,
            samples=[first, progress.samples],
            tokens=progress.step * config.batch.tokens,
            stage=metrics.stage_at(self._curriculum, (progress.samples - 1) * config.data.sequence_length),
            loss=loss,
            learning_rate=measured.rate,
            gradient_norm=norm,
            tokens_per_s=speed,
            mfu=speed * self._flops_per_token / self._peak_flops,
            seconds=progress.seconds,
            usd=progress.seconds / 3600 * self._price_per_hour,
        )

    def write(self, **values: Any) -> None:
        """One line, from rank 0."""
        if self._lines is not None:
            self._lines.write(**values)

    def restart_clock(self) -> None:
        """What was done since the last line is not training: leave it out of the speed."""
        self._window = time.perf_counter()
