"""The stream as batches: each optimizer step is a list of micro-batches, the same for every number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bafogpt.core.errors import DataError
from bafogpt.model.loss import IGNORE
from bafogpt.storage.tokens.stream import Samples, prefetch
from bafogpt.train.config import TrainConfig, rank_samples


class Batch(NamedTuple):
    """Some samples, as the model takes them."""

    ids: torch.Tensor
    """[B, T] int64."""
    targets: torch.Tensor
    """[B, T] int64: the token after each of ``ids``, or :data:`IGNORE`."""
    documents: torch.Tensor | None
    """[B, T] int32: the number of the document within its sample, where documents must not see each other."""
    learned: int | None = None
    """Targets that are learned from; None where all of them are, as in plain text."""


class SampleRow(NamedTuple):
    """One sample, still on the host."""

    tokens: np.ndarray
    """[T+1], of the dataset's type."""
    documents: np.ndarray | None = None
    """[T] int32, where documents must not see each other."""
    learned: np.ndarray | None = None
    """[T] bool: which targets are learned from, where not all are."""
    first_target: int = 1
    """Where the first target stands in the sample as the stream has it: 0 where ``<bos>`` was put before it."""


def sample_row(samples: Samples, index: int, tokens: np.ndarray, *, separate_documents: bool = False) -> SampleRow:
    """Sample ``index``, whose tokens [T+1] have been read, with what else the model must know of it.

    Where samples begin with ``<bos>`` and this one does not, it is put before the first T tokens, so that each token of
    the stream is a target once and sample ``index`` needs no other tokens than before. Raises :class:`DataError` for an
    id that the model has no row for: a GPU would stop in a kernel.
    """
    if samples.rows is not None and int(tokens.max()) >= samples.rows:
        raise DataError(
            f"sample {index} has the token {int(tokens.max()):,}, and the model {samples.rows:,} rows",
            "expand the model (bafogpt model expand), or prepare the data without that token",
        )
    if samples.bos is not None and tokens[0] != samples.bos:
        tokens = np.concatenate([np.array([samples.bos], tokens.dtype), tokens[:-1]])
        return SampleRow(tokens, document_numbers(samples, index, 1) if separate_documents else None, first_target=0)
    if samples.stream.is_packed:
        learned = samples.stream.learned(samples.start(index), samples.length + 1)[1:]
        return SampleRow(tokens, document_numbers(samples, index), learned)
    return SampleRow(tokens, document_numbers(samples, index) if separate_documents else None)


def make_batch(rows: Sequence[SampleRow], device: torch.device) -> Batch:
    """Samples as a batch on ``device``; every token but the first is a target, unless a row says otherwise."""
    tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
    targets, learned = tokens[:, 1:], None
    if masks := [row.learned for row in rows if row.learned is not None]:
        mask = np.stack(masks)
        targets, learned = np.where(mask, targets, IGNORE), int(mask.sum())
    numbers = [row.documents for row in rows if row.documents is not None]
    documents = _to(np.stack(numbers), device) if numbers else None
    return Batch(_to(tokens[:, :-1], device), _to(targets, device), documents, learned)


def document_numbers(samples: Samples, index: int, before: int = 0) -> np.ndarray:
    """Which document of the sample each of its T inputs belongs to, counted from 0; [T] int32.

    The first ``before`` inputs are not of the stream and belong to the first document.
    """
    begins = samples.stream.documents(samples.start(index), samples.length - before) + before
    numbers = np.zeros(samples.length, np.int32)
    numbers[begins[begins > before]] = 1
    return numbers.cumsum(dtype=np.int32)


def step_batches(
    samples: Samples,
    config: TrainConfig,
    *,
    first: int,
    micro_batch: int,
    rank: int,
    processes: int,
    device: torch.device,
) -> Generator[list[Batch]]:
    """For each step from sample ``first`` to the end: this process's micro-batches, in the stream's order.

    A step's micro-batches come together, because its loss is a sum over the number of targets of all of them, which
    must be known before the first backward pass. Closing the generator stops the read-ahead.
    """
    last, share = config.steps * config.batch_samples, config.batch_samples // processes
    indices = rank_samples(first, last, config.batch_samples, rank, processes)
    rows: list[SampleRow] = []
    with contextlib.closing(prefetch(samples, indices, depth=config.data.prefetch)) as reader:
        for index, tokens in reader:
            rows.append(sample_row(samples, index, tokens, separate_documents=config.data.separate_documents))
            if len(rows) == share:
                yield [make_batch(rows[start : start + micro_batch], device) for start in range(0, share, micro_batch)]
                rows = []


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """On the device; for a GPU from pinned memory, so that the copy runs while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
