"""Who reads which samples: the arithmetic by which any number of processes share one stream."""

from __future__ import annotations

from collections.abc import Iterator


def rank_samples(first: int, batch_samples: int, rank: int, processes: int) -> range:
    """The samples that one process reads for the step that begins at sample ``first``.

    A step is samples [first, first + batch_samples) whatever the number of processes; each takes one run of them,
    in order. The position of a run is therefore one integer, and any other number of processes can go on from it.
    """
    share = batch_samples // processes
    return range(first + rank * share, first + (rank + 1) * share)


def all_rank_samples(first: int, last: int, batch_samples: int, rank: int, processes: int) -> Iterator[int]:
    """Every sample that one process reads from position ``first`` up to ``last``, in order."""
    for start in range(first, last, batch_samples):
        yield from rank_samples(start, batch_samples, rank, processes)
