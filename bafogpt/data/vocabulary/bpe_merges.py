"""Learns byte-pair merges incrementally.

The counts of all neighbouring pairs are updated with each merge, using an index of the units that contain each pair and
a heap of counts. A pair's count only falls after the step that creates it, so a heap entry that is too high is pushed
back with the current count. Ties go to the pair with the lower ids.
(Sennrich et al. 2016, arXiv:1508.07909; here over the tokens of another tokenizer in place of characters.)
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping

Unit = tuple[int, ...]
Pair = tuple[int, int]


class PairIndex:
    """The neighbouring pairs of a set of units after the merges so far."""

    def __init__(self, units: Mapping[Unit, int], forbidden: Iterable[Pair] = ()) -> None:
        self._forbidden = set(forbidden)
        self._units = [list(unit) for unit in units]
        self._numbers = list(units.values())
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self._where: defaultdict[Pair, list[int]] = defaultdict(list)
        """The units that have contained a pair; whether they still do is checked when it is merged."""
        for index, unit in enumerate(self._units):
            number = self._numbers[index]
            for pair in itertools.pairwise(unit):
                self._counts[pair] += number
                self._where[pair].append(index)
        self._heap = [(-number, pair) for pair, number in self._counts.items() if pair not in self._forbidden]
        heapq.heapify(self._heap)

    def most_frequent(self) -> tuple[Pair, int] | None:
        """The most frequent pair and its count; None when no pair is left. The pair stays in the index."""
        while self._heap:
            negative, pair = self._heap[0]
            number = self._counts.get(pair, 0)
            if number == -negative:
                return pair, number
            if number:
                heapq.heapreplace(self._heap, (-number, pair))
            else:
                heapq.heappop(self._heap)
        return None

    def forbid(self, pair: Pair) -> None:
        """Exclude ``pair``, which must be the result of the last :meth:`most_frequent`."""
        self._forbidden.add(pair)
        heapq.heappop(self._heap)

    def merge(self, pair: Pair, token: int) -> None:
        """Replace ``pair``, the result of the last :meth:`most_frequent`, by ``token`` everywhere, left to right."""
        heapq.heappop(self._heap)
        made: set[Pair] = set()
        counts, where = self._counts, self._where
        for index in where.pop(pair, ()):
            old = self._units[index]
            new = merged(old, pair, token)
            if len(new) == len(old):
                continue  # listed twice, or merged away since
            number = self._numbers[index]
            for each in itertools.pairwise(old):
                counts[each] -= number
            for each in itertools.pairwise(new):
                counts[each] += number
                if token in each:
                    where[each].append(index)
                    made.add(each)
            self._units[index] = new
        counts.pop(pair, None)
        for each in made:  # those that fell have an entry already
            heapq.heappush(self._heap, (-counts[each], each))


def merged(tokens: list[int], pair: Pair, token: int) -> list[int]:
    """``tokens`` with every ``pair`` replaced by ``token``, left to right."""
    first, second = pair
    new = []
    last = len(tokens) - 1
    position = 0
    while position <= last:
        current = tokens[position]
        if current == first and position < last and tokens[position + 1] == second:
            new.append(token)
            position += 2
        else:
            new.append(current)
            position += 1
    return new


def apply(tokens: list[int], merges: Mapping[Pair, int]) -> list[int]:
    """Apply ``merges`` (pair to token; lower tokens first) to ``tokens`` as an encoder does."""
    while len(tokens) > 1:
        token, pair = min(
            ((merges[each], each) for each in itertools.pairwise(tokens) if each in merges),
            default=(-1, (-1, -1)),
        )
        if token < 0:
            break
        tokens = merged(tokens, pair, token)
    return tokens
