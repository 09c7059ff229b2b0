"""Reading a dataset: one split as one flat array of tokens, cut into samples by arithmetic.

The state of a reader is one integer, the index of the next sample. So what a run reads does not depend on how many
processes read, how far they read ahead, nor on when they were stopped.
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
"""How many are kept for reading at random, and for samples that share one."""
READ_AHEAD = 3
"""Blocks. Two requests fill a line while the third block is hashed and handed over; more only hold more memory."""
_GROUP = 1024  # samples that are planned and handed on together, so that each costs no line of Python
_GROUPS_AHEAD = 64  # bounds what is planned where the blocks do not: a dataset smaller than the read-ahead
Tokens: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32]"


class Block(NamedTuple):
    """Tokens [first, end) of the stream: block ``number`` of shard ``shard``."""

    shard: int
    number: int
    first: int
    end: int


class TokenStream:
    """One split of a dataset as one flat array of ``tokens`` tokens (uint16 or uint32).

    Tokens are fetched in blocks; each is verified by its hash before a token of it is seen, and the last few stay
    in memory. It may be used from several threads, and not across a fork.
    """

    def __init__(self, bucket: Bucket, manifest: TokenManifest, split: str, *, cache: BlockCache | None = None) -> None:
        self._split = manifest.splits[split]
        self._dtype = np.dtype(f"<u{ITEM_BYTES[manifest.dtype]}")
        self._per_block = manifest.block_bytes // self._dtype.itemsize
        self._reader = VerifiedReader(bucket, cache)
        self._recent: OrderedDict[Block, Future[Tokens]] = OrderedDict()
        self._recent_places: OrderedDict[tuple[int, bool], NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()
        self.tokens = self._split.tokens
        self.is_packed = manifest.packing is not None

    def read(self, start: int, count: int) -> Tokens:
        """Tokens [start, start + count) as an array of its own, across the borders of shards.

        Raises :class:`CorruptError` naming the shard and the byte range where content is not what was written, and
        IndexError outside [0, ``tokens``).
        """
        blocks = self.blocks(start, count)
        if not blocks:
            return np.empty(0, self._dtype)
        return _gather(blocks, map(self.load, blocks), start, count)

    def documents(self, start: int, count: int) -> NDArray[np.int64]:
        """Where documents begin in tokens [start, start + count), ascending and relative to ``start``; 1-D int64.

        The span's first token is among them only if a document begins there. Raises as :meth:`read` does.
        """
        self._require(start, count)
        found = [np.empty(0, np.int64)]
        position, end = start, start + count
        while position < end:
            shard, offset = self._split.locate(position)
            first, stop = self._split.starts[shard], min(end, self._split.starts[shard + 1])
            begins = self._places(shard)
            low, high = np.searchsorted(begins, (offset, stop - first))
            found.append(begins[low:high] + (first - start))
            position = stop
        return np.concatenate(found)

    def blocks(self, start: int, count: int) -> tuple[Block, ...]:
        """The blocks that hold tokens [start, start + count), in order; nothing is fetched."""
        self._require(start, count)
        found = []
        position = start
        while position < start + count:
            shard, offset = self._split.locate(position)
            number, starts = offset // self._per_block, self._split.starts
            first = starts[shard] + number * self._per_block
            found.append(Block(shard, number, first, min(first + self._per_block, starts[shard + 1])))
            position = found[-1].end
        return tuple(found)

    def load(self, block: Block) -> Tokens:
        """The tokens of a block, read-only; fetched once however many threads ask for it at the same time."""
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
        """A block, verified, as a view of the bytes that came."""
        shard, item = self._split.shards[block.shard], self._dtype.itemsize
        expected = shard.blocks[block.number * HASH_CHARS : (block.number + 1) * HASH_CHARS]
        start, length = block.number * self._per_block * item, (block.end - block.first) * item
        return np.frombuffer(self._reader.read(shard.object, start, length, expected), self._dtype)

    def learned(self, start: int, count: int) -> NDArray[np.bool_]:
        """Which of tokens [start, start + count) a model is to learn: of a packed dataset the answers, else all.

        Raises as :meth:`read` does.
        """
        self._require(start, count)
        if not self.is_packed:
            return np.ones(count, np.bool_)
        found = np.zeros(count, np.bool_)
        position, end = start, start + count
        while position < end:
            shard, offset = self._split.locate(position)
            first, stop = self._split.starts[shard], min(end, self._split.starts[shard + 1])
            spans = self._places(shard, answers=True).reshape(-1, 2)
            low = np.searchsorted(spans[:, 1], offset, side="right")
            high = np.searchsorted(spans[:, 0], stop - first)
            for begin, to in spans[low:high] + (first - start):
                found[max(begin, position - start) : min(to, stop - start)] = True
            position = stop
        return found

    def _places(self, index: int, *, answers: bool = False) -> NDArray[np.int64]:
        """The offsets, relative to a shard's start, at which documents begin, or between which answers lie."""
        key = (index, answers)
        with self._lock:
            places = self._recent_places.get(key)
        if places is None:
            shard = self._split.shards[index]
            name, size, expected = shard.docs_object, 8 * shard.documents, shard.docs_digest
            if answers:
                name, size, expected = shard.answers_object, 16 * shard.answers, shard.answers_digest
            data = self._reader.read(name, 0, size, expected.removeprefix("xxh3:"))
            places = np.frombuffer(data, "<u8").astype(np.int64)
        with self._lock:
            self._recent_places[key] = places
            self._recent_places.move_to_end(key)
            if len(self._recent_places) > 2 * BLOCKS_IN_MEMORY:
                self._recent_places.popitem(last=False)
        return places

    def _require(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.tokens}")


@dataclass(frozen=True)
class Samples:
    """Training samples of ``length`` T: sample i is the T+1 tokens [k·T, k·T + T], where k = i mod ``count``.

    The last token of a sample is a target only and the first of the next one. After ``count`` samples the next
    epoch gives the same ones in the same order. Raises :class:`DataError` when the stream is too short for one.
    """

    stream: TokenStream
    length: int
    bos: int | None = None
    """The id that a model is to read before a sample's first T tokens where they do not begin with it; None for none.
    What is read of the stream is the same: :func:`bafogpt.train.batches.row` puts it there."""
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
    """(index, sample) for each of ``indices`` in order, while up to ``depth`` blocks are fetched ahead by threads.

    The first block has the line to itself; after it ``depth`` are in flight, and ``depth`` + 3 in memory at most.
    With ``depth`` 0 each is fetched when it is needed. A sample within one block is a read-only view of it: copy
    what is to stay. An error of the data is raised where its sample would have come. Closing the iterator does not
    wait for what is in flight; that ends by itself, at the latest after the bucket's ``s3_timeout_s``.
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
    """Samples that need the same blocks: their indices, and where in the first block each of them begins."""

    blocks: tuple[Block, ...]
    members: list[int]
    offsets: list[int]


def _groups(samples: Samples, indices: Iterable[int]) -> Iterator[_Group]:
    """``indices`` in order, cut where another block is needed.

    A sample that crosses a border is a group of its own, so that what lies before it does not wait for what it needs.
    """
    source = iter(indices)
    while members := list(itertools.islice(source, _GROUP)):
        numbers = np.array(members)
        starts = numbers % samples.count * samples.length
        while members:
            start = samples.start(members[0])
            blocks = samples.stream.blocks(start, samples.length + 1)
            offsets, many = starts - blocks[0].first, 1
            if len(blocks) == 1:
                room = blocks[0].end - blocks[0].first - samples.length
                outside = (offsets < 0) | (offsets >= room) | (numbers < 0)
                many = int(outside.argmax()) or len(members)
            yield _Group(blocks, members[:many], offsets[:many].tolist())
            members, numbers, starts = members[many:], numbers[many:], starts[many:]


class _ReadAhead:
    """Iterates (group, its blocks' tokens) over ``groups`` and keeps ``depth`` blocks coming."""

    def __init__(self, stream: TokenStream, groups: Iterator[_Group], depth: int) -> None:
        self._stream = stream
        self._groups = groups
        self._depth = depth
        self._pool = ThreadPoolExecutor(depth, "prefetch") if depth else None
        self._planned: deque[_Group] = deque()
        self._coming: dict[Block, Callable[[], Tokens]] = {}
        """How to get each block that a planned group needs."""

    def __iter__(self) -> Iterator[tuple[_Group, list[Tokens]]]:
        while self._planned or self._plan():
            loaded = [self._coming[block]() for block in self._planned[0].blocks]
            while len(self._coming) <= self._depth and len(self._planned) < _GROUPS_AHEAD and self._plan():
                pass
            yield self._planned[0], loaded
            self._planned.popleft()
            needed = {block for group in self._planned for block in group.blocks}
            self._coming = {block: get for block, get in self._coming.items() if block in needed}

    def _plan(self) -> bool:
        """Put the next group on its way, if there is one."""
        group = next(self._groups, None)
        if group is None:
            return False
        for block in group.blocks:
            if block not in self._coming:
                load = functools.partial(self._stream.load, block)
                self._coming[block] = self._pool.submit(load).result if self._pool else load
        self._planned.append(group)
        return True

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _gather(blocks: Iterable[Block], loaded: Iterable[Tokens], start: int, count: int) -> Tokens:
    """Tokens [start, start + count), copied together from the blocks that hold them."""
    pieces: list[Any] = [
        tokens[max(start - block.first, 0) : start + count - block.first]
        for block, tokens in zip(blocks, loaded, strict=True)
    ]
    joined: Tokens = np.concatenate(pieces)
    return joined
