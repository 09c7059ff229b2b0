"""The stream as batches: each optimizer step is a list of micro-batches, the same for every number of processes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bafogpt.storage.tokens.stream import Samples, prefetch
from bafogpt.train import shares

IGNORED = -100
"""A target that is not learned from, as in PyTorch's cross-entropy."""


class Batch(NamedTuple):
    """Some samples, as the model takes them."""

    ids: torch.Tensor
    """[B, T] int64."""
    targets: torch.Tensor
    """[B, T] int64: the token after each of ``ids``, or ``IGNORED``."""
    documents: torch.Tensor | None
    """[B, T] int32: the number of the document within its sample, where documents must not see each other."""
    learned: int
    """Targets that are learned from."""


def of_rows(rows: Sequence[np.ndarray], device: torch.device, documents: Sequence[np.ndarray] | None = None) -> Batch:
    """Samples of T+1 tokens each, every token but the first a target, on ``device``."""
    tokens = _to(np.stack(rows).astype(np.int64), device)
    numbers = None if documents is None else _to(np.stack(documents), device)
    return Batch(tokens[:, :-1], tokens[:, 1:], numbers, tokens.shape[0] * (tokens.shape[1] - 1))


def document_numbers(samples: Samples, index: int) -> np.ndarray:
    """Which document of the sample each of its T inputs belongs to, counted from 0; [T] int32."""
    begins = samples.stream.documents(samples.start(index), samples.length)
    numbers = np.zeros(samples.length, np.int32)
    numbers[begins[begins > 0]] = 1
    return numbers.cumsum(dtype=np.int32)


def steps(
    samples: Samples,
    *,
    first: int,
    last: int,
    batch_samples: int,
    micro: int,
    rank: int,
    processes: int,
    device: torch.device,
    depth: int,
    separate_documents: bool = False,
) -> Generator[list[Batch]]:
    """For each step from sample ``first`` up to ``last``: this process's micro-batches, in the stream's order.

    A step's micro-batches come together, because its loss is a sum over the number of targets of all of them, which
    must be known before the first goes backward. ``depth`` blocks are read ahead; closing ends that.
    """
    share = batch_samples // processes
    reader = prefetch(samples, shares.all_rank_samples(first, last, batch_samples, rank, processes), depth=depth)
    rows: list[np.ndarray] = []
    documents: list[np.ndarray] = []
    try:
        for index, tokens in reader:
            rows.append(tokens)
            if separate_documents:
                documents.append(document_numbers(samples, index))
            if len(rows) == share:
                cuts = [slice(start, start + micro) for start in range(0, share, micro)]
                yield [of_rows(rows[cut], device, documents[cut] if separate_documents else None) for cut in cuts]
                rows, documents = [], []
    finally:
        reader.close()


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """On the device; for a GPU from pinned memory, so that the copy runs while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
