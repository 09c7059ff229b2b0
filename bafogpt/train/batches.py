"""The token stream as micro-batches; an optimizer step has the same samples for every number of processes."""

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
    """One micro-batch on the device."""

    ids: torch.Tensor
    """[B, T] int64."""
    targets: torch.Tensor
    """[B, T] int64: the token after each of ``ids``, or :data:`IGNORE`."""
    documents: torch.Tensor | None
    """[B, T] int32: number of the document within its sample, where attention is limited to the document."""
    target_count: int | None = None
    """Targets that are not :data:`IGNORE`; None if all of them, as in plain text."""


class SampleRow(NamedTuple):
    """One sample on the host."""

    tokens: np.ndarray
    """[T+1], of the dataset's type."""
    documents: np.ndarray | None = None
    """[T] int32, where attention is limited to the document."""
    loss_mask: np.ndarray | None = None
    """[T] bool: the targets to learn from; None is all."""
    first_target: int = 1
    """Position of the first target in the stream's sample: 0 if ``<bos>`` was put before it."""


def sample_row(samples: Samples, index: int, tokens: np.ndarray, *, separate_documents: bool = False) -> SampleRow:
    """Sample ``index`` with tokens [T+1].

    If samples begin with ``<bos>`` and this one does not, ``<bos>`` is put before its first T tokens, so that each
    token of the stream is a target once. Raises :class:`DataError` for an id without a row in the model, which would
    abort a GPU kernel.
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
        loss_mask = samples.stream.learned(samples.start(index), samples.length + 1)[1:]
        return SampleRow(tokens, document_numbers(samples, index), loss_mask)
    return SampleRow(tokens, document_numbers(samples, index) if separate_documents else None)


def make_batch(rows: Sequence[SampleRow], device: torch.device) -> Batch:
    """Samples as a batch on ``device``; every token but the first is a target, unless masked."""
    tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
    targets, target_count = tokens[:, 1:], None
    if masks := [row.loss_mask for row in rows if row.loss_mask is not None]:
        mask = np.stack(masks)
        targets, target_count = np.where(mask, targets, IGNORE), int(mask.sum())
    numbers = [row.documents for row in rows if row.documents is not None]
    documents = _to(np.stack(numbers), device) if numbers else None
    return Batch(_to(tokens[:, :-1], device), _to(targets, device), documents, target_count)


def document_numbers(samples: Samples, index: int, before: int = 0) -> np.ndarray:
    """The document of each of a sample's T inputs, counted from 0; [T] int32.

    The first ``before`` inputs are not from the stream and belong to the first document.
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
    """Copy to the device; to a GPU from pinned memory, so that the host need not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
