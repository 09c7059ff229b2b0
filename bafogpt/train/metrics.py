"""The metrics of a run: one JSON line a step.

Fields: ``time`` (s since the epoch), ``step``, ``samples`` ([first, last) of what the line covers), ``tokens`` (seen
in all), ``stage`` (of the curriculum, at the line's last token), ``loss`` (nats a token, mean over the batch),
``learning_rate``, ``gradient_norm``, ``tokens_per_s``, ``mfu``, ``seconds`` (training time over all attempts).
A validation adds ``validation_loss``, ``validation_samples``, ``validation_bpb`` (bits a byte), ``validation_stages``
and ``validation_languages``: for each its ``loss`` and ``bpb``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bafogpt.storage.tokens.manifest import Split
from bafogpt.train.estimates import gpus


@dataclass(frozen=True)
class StepMetrics:
    """The result of a step. Tensors are scalars on the device; reading them waits for it."""

    loss: torch.Tensor
    """This process's part of the mean loss, nats a target; the step's loss is the sum over processes."""
    norm: torch.Tensor
    """Of the whole gradient, before clipping."""
    rate: float
    targets: int
    """Tokens learned from, over all processes."""


def peak_flops(device: torch.device, precision: str = "32-true") -> float:
    """Peak FLOP/s of one device, the denominator of MFU.

    From the data sheet of a listed GPU, else from its multiprocessors and clock. For a CPU, and a GPU of an unknown
    kind, it is measured: the best of three matrix products, in ``precision`` or in bf16.
    """
    gpu = device.type == "cuda"
    if gpu:
        properties = torch.cuda.get_device_properties(device)
        listed = gpus.of_device(properties.name)
        known = listed.bf16 if listed else gpus.derived_bf16(properties)
        if known is not None:
            return known
    size, bf16 = (8192, True) if gpu else (1024, precision.startswith("bf16"))
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def stage_at(split: Split, token: int) -> str:
    """The curriculum stage of a token of the split's stream, which repeats."""
    position = token % split.tokens
    return next((stage.name for stage in reversed(split.stages) if stage.start_token <= position), "")


class MetricsLog:
    """Appends lines to a file; a kill can tear only the last one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append one line, with numbers rounded to 7 digits."""
        rounded = {key: float(f"{each:.7g}") if isinstance(each, float) else each for key, each in values.items()}
        self._file.write(json.dumps({"time": round(time.time(), 3), **rounded}) + "\n")
