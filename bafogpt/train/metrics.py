"""What a run tells while it trains: one JSON line a step.

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
    """What a step found. Tensors are scalars still on the device: reading them is waiting for it."""

    loss: torch.Tensor
    """This process's part of the step's mean loss, nats a target; the sum over processes is the step's loss."""
    norm: torch.Tensor
    """Of the whole gradient, before clipping."""
    rate: float
    targets: int
    """Tokens learned from, over all processes."""


def peak_flops(device: torch.device, precision: str = "32-true") -> float:
    """Operations a second that one device could do at best.

    A GPU's data sheet; for one that is not listed what its multiprocessors and clock allow
    (:func:`bafogpt.train.estimates.gpus.derived_bf16`). On a CPU, and for a GPU of an unknown kind, what a matrix
    product reaches here, best of three, in ``precision`` and in bf16 respectively: MFU then says how near the loop
    comes to plain matrix products on this machine.
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
    """The curriculum stage that holds a token of the split's stream (the stream begins anew at its end)."""
    position = token % split.tokens
    name = ""
    for stage in split.stages:
        if stage.start_token > position:
            break
        name = stage.name
    return name


class MetricsLog:
    """Appends lines to a file; each line is whole even if the process is killed while writing the next."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """One line. Numbers are rounded to what they mean."""
        line = {"time": round(time.time(), 3)} | {name: _rounded(value) for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value
