"""A tensor on disk: its name, shape and dtype, and a function that reads rows of it.

Renaming, joining, splitting and converting are lazy. So a model of any size can be converted, or each process can read
its own rows, with one block of rows in memory at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

BLOCK_BYTES = 8 << 20
"""Approximate bytes per block of :meth:`LazyTensor.blocks`."""

Read = Callable[[int, int], torch.Tensor]
"""Rows ``start`` to ``stop`` (exclusive) along the first dimension, as a tensor on the CPU."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor, read by rows."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Read

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> LazyTensor:
        """A view of a tensor in memory."""
        detached = tensor.detach()
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda start, stop: detached[start:stop].cpu())

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    def tensor(self) -> torch.Tensor:
        """The whole tensor, copied into memory."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for start, block in self.blocks():
            whole[start : start + len(block)] = block
        return whole

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows ``start`` to ``stop`` as (first row, rows), about :data:`BLOCK_BYTES` at a time."""
        stop = self.rows if stop is None else stop
        step = max(1, BLOCK_BYTES // max(1, self.row_bytes))
        for first in range(start, stop, step):
            yield first, self.read(first, min(first + step, stop))

    def renamed(self, name: str) -> LazyTensor:
        return replace(self, name=name)

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The tensor in another dtype, converted when it is read."""
        if dtype == self.dtype:
            return self
        return replace(self, dtype=dtype, read=lambda start, stop: self.read(start, stop).to(dtype))

    def part(self, name: str, first: int, rows: int) -> LazyTensor:
        """``rows`` rows from row ``first``, as another tensor."""
        return replace(
            self,
            name=name,
            shape=(rows, *self.shape[1:]),
            read=lambda start, stop: self.read(first + start, first + stop),
        )


def joined(name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """The parts concatenated along the first dimension; dtypes and row shapes must be equal."""
    assert len({(part.shape[1:], part.dtype) for part in parts}) == 1, [part.name for part in parts]
    ends = list(itertools.accumulate(part.rows for part in parts))
    begins = [0, *ends[:-1]]

    def read(start: int, stop: int) -> torch.Tensor:
        pieces = [
            part.read(max(start, begin) - begin, min(stop, end) - begin)
            for part, begin, end in zip(parts, begins, ends, strict=True)
            if start < end and begin < stop
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    return LazyTensor(name, (ends[-1], *parts[0].shape[1:]), parts[0].dtype, read)
