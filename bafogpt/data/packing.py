"""Conversations into samples of T tokens, so that none crosses a sample's border.

Each goes where it leaves the least room among a few samples that are still open, as bin packing does ("best fit");
what room is left at the end of a sample is filled with end tokens that nobody learns. Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

OPEN_SAMPLES = 64
"""More of them would fill samples better by less than a hundredth, and mix the order more."""

T = TypeVar("T")


@dataclass
class Bin(Generic[T]):
    """One sample."""

    room: int
    """Tokens that are free."""
    items: list[T] = field(default_factory=list)


def pack(items: Iterable[tuple[T, int]], size: int) -> Iterator[Bin[T]]:
    """Samples of ``size`` tokens from (item, its tokens), every item in one of them, in the order they are full.

    An item is at most ``size`` long. The sample that was opened first is closed when none of the open ones has room.
    """
    bins: list[Bin[T]] = []
    for item, length in items:
        assert 0 < length <= size
        fitting = [each for each in bins if each.room >= length]
        best = min(fitting, key=lambda each: each.room) if fitting else None
        if best is None:
            if len(bins) == OPEN_SAMPLES:
                yield bins.pop(0)
            best = Bin(size)
            bins.append(best)
        best.items.append(item)
        best.room -= length
        if not best.room:
            bins.remove(best)
            yield best
    yield from bins
