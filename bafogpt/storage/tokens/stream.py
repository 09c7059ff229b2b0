"""Read a dataset: one split as one flat array of tokens, cut into samples by arithmetic.

The state of a reader is one integer, the index of the next sample. So the samples of a run do not depend on the number
of processes, on the read-ahead, or on interruptions.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bafogpt.core.errors import DataError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.blocks import BlockCache, VerifiedReader
from bafogpt.storage.tokens.manifest import HASH_CHARS, ITEM_BYTES, TokenManifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockCache", "Samples", "TokenStream", "prefetch"]

BLOCKS_IN_MEMORY = 3
"""For random reads, and for samples that share a block."""
READ_AHEAD = 3
"""Blocks. Two requests fill a line while the third block is hashed; more only use more memory."""
_GROUP = 1024  # samples that are planned together, so that none costs a line of Python
_GROUPS_AHEAD = 64  # limits the plan for a dataset smaller than the read-ahead
Tokens: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32]"


class Block(NamedTuple):
    """Tokens [first, end) of the stream: block ``number`` of shard ``shard``."""

    shard: int
    number: int
    first: int
    end: int


class TokenStream:
    """One split of a dataset as one flat array of ``tokens`` tokens (uint16 or uint32).

    Tokens are fetched in blocks; each is verified by its hash, and the last few stay in memory. Thread-safe, not
    fork-safe.
    """

    def __init__(self, bucket: Bucket, manifest: TokenManifest, split: str, *, cache: BlockCache | None = None) -> None:
        self._split = manifest.splits[split]
        self._dtype = np.dtype(f"<u{ITEM_BYTES[manifest.dtype]}")
        self._per_block = manifest.block_bytes // self._dtype.itemsize
        self._reader = VerifiedReader(bucket, cache)
        self._recent: OrderedDict[Block, Future[Tokens]] = OrderedDict()
        self._offsets = functools.lru_cache(2 * BLOCKS_IN_MEMORY)(self._read_offsets)
        self._lock = threading.Lock()
        self.tokens = self._split.tokens
        self.is_packed = manifest.packing is not None

    def read(self, start: int, count: int) -> Tokens:
        """Tokens [start, start + count) as an array of its own, across the borders of shards.

        Raises :class:`~bafogpt.core.errors.CorruptError` with the shard and the byte range where content does not
        match its hash, and IndexError outside [0, ``tokens``).
        """
        blocks = self.blocks(start, count)
        return _gather(blocks, map(self.load, blocks), start, count) if blocks else np.empty(0, self._dtype)

    def documents(self, start: int, count: int) -> NDArray[np.int64]:
        """Where documents begin in tokens [start, start + count), ascending and relative to ``start``; 1-D int64.

        The span's first token is included only if a document begins there. Raises as :meth:`read` does.
        """
        found = [np.empty(0, np.int64)]
        for shard, first, begin, end in self._by_shard(start, count):
            begins = self._offsets(shard)
            low, high = np.searchsorted(begins, (begin - first, end - first))
            found.append(begins[low:high] + (first - start))
        return np.concatenate(found)

    def learned(self, start: int, count: int) -> NDArray[np.bool_]:
        """Which of tokens [start, start + count) a model learns: the answers of a packed dataset, else all.

        Raises as :meth:`read` does.
        """
        parts = list(self._by_shard(start, count))
        if not self.is_packed:
            return np.ones(count, np.bool_)
        found = np.zeros(count, np.bool_)
        for shard, first, begin, end in parts:
            spans = self._offsets(shard, answers=True).reshape(-1, 2)
            low = np.searchsorted(spans[:, 1], begin - first, side="right")
            high = np.searchsorted(spans[:, 0], end - first)
            for low_token, high_token in spans[low:high] + (first - start):
                found[max(low_token, begin - start) : min(high_token, end - start)] = True
        return found

    def blocks(self, start: int, count: int) -> tuple[Block, ...]:
        """The blocks that hold tokens [start, start + count), in order; fetches nothing."""
        size, found = self._per_block, []
        for shard, first, begin, end in self._by_shard(start, count):
            for number in range((begin - first) // size, -(-(end - first) // size)):
                block_start = first + number * size
                found.append(Block(shard, number, block_start, min(block_start + size, self._split.starts[shard + 1])))
        return tuple(found)

    def load(self, block: Block) -> Tokens:
        """The tokens of a block, read-only; fetched once for all threads that need it at the same time."""
        with self._lock:
            known = self._recent.get(block)
            if known is None:
                mine = self._recent[block] = Future()
            self._recent.move_to_end(block)
            if len(self._recent) > BLOCKS_IN_MEMORY:
                self._recent.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            tokens = self._fetch(block)
        except BaseException as error:
            with self._lock:
                self._recent.pop(block, None)
            mine.set_exception(error)
            raise
        mine.set_result(tokens)
        return tokens

    def _fetch(self, block: Block) -> Tokens:
        """A block, verified, as a view of the received bytes."""
        shard, item = self._split.shards[block.shard], self._dtype.itemsize
        expected = shard.blocks[block.number * HASH_CHARS : (block.number + 1) * HASH_CHARS]
        start, length = block.number * self._per_block * item, (block.end - block.first) * item
        return np.frombuffer(self._reader.read(shard.object, start, length, expected), self._dtype)

    def _read_offsets(self, index: int, *, answers: bool = False) -> NDArray[np.int64]:
        """Where documents begin, or answers begin and end, relative to a shard's start."""
        shard = self._split.shards[index]
        name, size, expected = shard.docs_object, 8 * shard.documents, shard.docs_digest
        if answers:
            name, size, expected = shard.answers_object, 16 * shard.answers, shard.answers_digest
        data = self._reader.read(name, 0, size, expected.removeprefix("xxh3:"))
        return np.frombuffer(data, "<u8").astype(np.int64)

    def _by_shard(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Tokens [start, start + count) shard by shard: (shard, its first token, begin, end) as tokens of the stream.

        Raises IndexError outside [0, ``tokens``).
        """
        end = start + count
        if start < 0 or count < 0 or end > self.tokens:
            raise IndexError(f"tokens [{start}, {end}) of {self.tokens}")
        while start < end:
            shard, offset = self._split.locate(start)
            stop = min(end, self._split.starts[shard + 1])
            yield shard, start - offset, start, stop
            start = stop


@dataclass(frozen=True)
class Samples:
    """Training samples of ``length`` T: sample i is the T+1 tokens [k·T, k·T + T], where k = i mod ``count``.

    The last token of a sample is only a target, and the first of the next sample. After ``count`` samples the next
    epoch repeats them in the same order. Raises :class:`DataError` when the stream is too short for one.
    """

    stream: TokenStream
    length: int
    bos: int | None = None
    """The id that a model is to read before a sample's first T tokens where they do not begin with it; None for none.
    The stream is read unchanged; :func:`bafogpt.train.batches.sample_row` inserts the id."""
    rows: int | None = None
    """How many ids the model has rows for, where the dataset's tokenizer has more."""
    count: int = field(init=False)

    def __post_init__(self) -> None:
        count = (self.stream.tokens - 1) // self.length
        if count < 1:
            raise DataError(
                f"the dataset has {self.stream.tokens} tokens, one sample of {self.length} needs {self.length + 1}",
                "add text, or lower data.sequence_length",
            )
        object.__setattr__(self, "count", count)

    def __getitem__(self, index: int) -> Tokens:
        """Sample ``index`` ≥ 0, of shape (T+1,), as an array of its own."""
        return self.stream.read(self.start(index), self.length + 1)

    def start(self, index: int) -> int:
        """The first token of sample ``index`` ≥ 0 in the stream."""
        if index < 0:
            raise IndexError(index)
        return index % self.count * self.length


def prefetch(
    samples: Samples, indices: Iterable[int], depth: int = READ_AHEAD
) -> Generator[tuple[int, Tokens], None, None]:
    """(index, sample) for each of ``indices`` in order, while threads fetch up to ``depth`` blocks ahead.

    The first block is fetched alone; after it ``depth`` are in flight, and at most ``depth`` + 3 in memory. With
    ``depth`` 0 each is fetched when it is needed. A sample within one block is a read-only view of it: copy what must
    stay. An error in the data is raised in place of its sample. Closing the iterator does not wait for requests in
    flight, which end at the latest after the bucket's ``s3_timeout_s``.
    """
    size = samples.length + 1
    with _ReadAhead(samples.stream, _groups(samples, indices), depth) as ahead:
        for group, loaded in ahead:
            if len(loaded) > 1:
                index = group.members[0]
                yield index, _gather(group.blocks, loaded, samples.start(index), size)
            else:
                windows = np.lib.stride_tricks.sliding_window_view(loaded[0], size)
                yield from zip(group.members, map(windows.__getitem__, group.offsets), strict=True)


class _Group(NamedTuple):
    """Samples in the same blocks: their indices, and where in the first block each begins."""

    blocks: tuple[Block, ...]
    members: list[int]
    offsets: list[int]


def _groups(samples: Samples, indices: Iterable[int]) -> Iterator[_Group]:
    """Runs of ``indices`` within one block. A sample across a border is a group of its own, so that samples before it
    do not wait for its second block."""
    source = iter(indices)
    while members := list(itertools.islice(source, _GROUP)):
        if min(members) < 0:
            raise IndexError(min(members))
        starts = np.array(members) % samples.count * samples.length
        while members:
            blocks = samples.stream.blocks(int(starts[0]), samples.length + 1)
            offsets = starts - blocks[0].first
            is_inside = (offsets >= 0) & (offsets < blocks[0].end - blocks[0].first - samples.length)
            many = 1 if len(blocks) > 1 else int(is_inside.argmin()) or len(members)
            yield _Group(blocks, members[:many], offsets[:many].tolist())
            members, starts = members[many:], starts[many:]


class _ReadAhead:
    """Iterates (group, its blocks' tokens) over ``groups`` and keeps ``depth`` blocks in flight."""

    def __init__(self, stream: TokenStream, groups: Iterator[_Group], depth: int) -> None:
        self._stream = stream
        self._groups = groups
        self._depth = depth
        self._pool = ThreadPoolExecutor(depth, "prefetch") if depth else None
        self._planned: deque[_Group] = deque()
        self._loading: dict[Block, Callable[[], Tokens]] = {}
        """Waits for a block that a planned group needs."""

    def __iter__(self) -> Iterator[tuple[_Group, list[Tokens]]]:
        while self._planned or self._plan():
            loaded = [self._loading[block]() for block in self._planned[0].blocks]
            while len(self._loading) <= self._depth and len(self._planned) < _GROUPS_AHEAD and self._plan():
                pass
            yield self._planned[0], loaded
            self._planned.popleft()
            needed = {block for group in self._planned for block in group.blocks}
            self._loading = {block: get for block, get in self._loading.items() if block in needed}

    def _plan(self) -> bool:
        """Start to load the next group, if there is one."""
        group = next(self._groups, None)
        if group is None:
            return False
        for block in group.blocks:
            if block not in self._loading:
                load = functools.partial(self._stream.load, block)
                self._loading[block] = self._pool.submit(load).result if self._pool else load
        self._planned.append(group)
        return True

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _gather(blocks: Iterable[Block], loaded: Iterable[Tokens], start: int, count: int) -> Tokens:
    """Tokens [start, start + count), copied from the blocks that hold them."""
    pieces: list[Any] = [
        tokens[max(start - block.first, 0) : start + count - block.first]
        for block, tokens in zip(blocks, loaded, strict=True)
    ]
    joined: Tokens = np.concatenate(pieces)
    return joined
