from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bafogpt.core import digest, process
from bafogpt.core.errors import CorruptError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import Shard, Split, Stage, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.stream import Samples, TokenStream, prefetch
from bafogpt.train.config import rank_samples
from tests.storage.tools import damage, record

Write = Callable[..., Any]
DEPTHS = [0, 1, 2, 4]


@pytest.fixture
def requests(folder: Bucket, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(object, first byte) of each range that is asked of ``folder``."""
    return record(monkeypatch, folder, "get_range", lambda *span: span[:2])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_stream_is_the_same_for_any_processes_depth_step_and_place_to_resume(
    folder: Bucket, write: Write, data: st.DataObject
) -> None:
    processes = data.draw(st.sampled_from([1, 2, 4]), "processes")
    batch = processes * data.draw(st.integers(1, 4), "samples a step and process")
    depth = data.draw(st.integers(0, 4), "depth")
    length = data.draw(st.sampled_from([1, 5, 32, 70]), "length")
    manifest, tokens = write(
        folder,
        data.draw(st.lists(st.integers(40, 200), min_size=2, max_size=5), "documents"),
        shard_bytes=data.draw(st.sampled_from([64, 130, 4096]), "shard"),
        block_bytes=data.draw(st.sampled_from([6, 32, 64]), "block"),
    )
    count = (len(tokens) - 1) // length
    steps = -(-2 * count // batch)  # past the edge of an epoch
    first = batch * data.draw(st.integers(0, steps - 1), "step it is resumed at")

    ranks = [Samples(TokenStream(folder, manifest, "train"), length) for _ in range(processes)]
    readers = [
        prefetch(samples, rank_samples(first, steps * batch, batch, rank, processes), depth)
        for rank, samples in enumerate(ranks)
    ]
    got = []
    for _ in range(first, steps * batch, batch):
        for reader in readers:
            got += [next(reader) for _ in range(batch // processes)]
    assert all(next(reader, None) is None for reader in readers)

    assert [index for index, _ in got] == list(range(first, steps * batch))
    for index, sample in got:
        start = index % count * length
        assert np.array_equal(sample, tokens[start : start + length + 1])


@pytest.mark.parametrize("depth", DEPTHS)
def test_samples_come_in_the_order_asked_for(folder: Bucket, write: Write, depth: int) -> None:
    manifest, _ = write(folder, [321])
    samples = Samples(TokenStream(folder, manifest, "train"), 32)
    order = [7, 0, 12, 12, 3, 1_000_000]
    got = list(prefetch(samples, order, depth))
    assert [index for index, _ in got] == order
    assert all(np.array_equal(sample, samples[index]) for index, sample in got)
    assert list(prefetch(samples, [], depth)) == []
    with pytest.raises(IndexError):
        list(prefetch(samples, [9, -1], depth))  # not the last sample, though it lies in the same block


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_is_raised_where_its_sample_would_have_come(folder: Bucket, write: Write, depth: int) -> None:
    manifest, _ = write(folder, [321])
    damage(folder, manifest.splits["train"].shards[1].object, 0)  # token 128: sample 3 ends with it
    stream = prefetch(Samples(TokenStream(folder, manifest, "train"), 32), itertools.count(), depth)
    assert [next(stream)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorruptError, match=r"shards/train-00001-\w+\.bin bytes 0-63: does not match its hash"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("depth", DEPTHS)
def test_reading_on_fetches_each_block_once(
    folder: Bucket, write: Write, requests: list[tuple[str, int]], depth: int
) -> None:
    manifest, _ = write(folder, [330])
    samples = Samples(TokenStream(folder, manifest, "train"), 10)
    assert len(list(prefetch(samples, range(samples.count), depth))) == 32
    assert len(requests) == len(set(requests)) == 11


@pytest.mark.parametrize("depth", DEPTHS)
def test_no_more_blocks_are_fetched_ahead_than_asked(
    folder: Bucket, write: Write, requests: list[tuple[str, int]], depth: int
) -> None:
    manifest, _ = write(folder, [1000])  # 32 blocks of 32 tokens
    stream = prefetch(Samples(TokenStream(folder, manifest, "train"), 4), range(240), depth)
    next(stream)
    assert process.wait_until(lambda: len(requests) >= 1 + depth, 2, poll_s=0.002)
    for _ in range(5):  # samples of the same block
        next(stream)
    assert not process.wait_until(lambda: len(requests) > 1 + depth, 0.05, poll_s=0.005)
    stream.close()


def test_the_first_block_does_not_share_the_line(folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = write(folder, [1000])
    asked: list[int] = []
    meanwhile: list[int] = []
    real = folder.get_range

    def get_range(path: str, start: int, length: int) -> memoryview:
        asked.append(start)
        if len(asked) == 1:
            process.wait_until(lambda: len(asked) > 1, 0.05, poll_s=0.005)
            meanwhile.append(len(asked))
        return real(path, start, length)

    monkeypatch.setattr(folder, "get_range", get_range)
    stream = prefetch(Samples(TokenStream(folder, manifest, "train"), 4), range(240), depth=4)
    next(stream)
    assert meanwhile == [1]
    stream.close()


def test_a_small_dataset_is_not_planned_endlessly(folder: Bucket, write: Write) -> None:
    manifest, _ = write(folder, [40], shard_bytes=4096, block_bytes=4096)  # one block is all there is
    samples = Samples(TokenStream(folder, manifest, "train"), 4)
    stream = prefetch(samples, itertools.count(), depth=4)
    got = list(itertools.islice(stream, 5000))
    stream.close()
    assert [index for index, _ in got] == list(range(5000))
    assert np.array_equal(got[4321][1], samples[4321])


def test_closing_does_not_wait_for_a_silent_server(
    folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = write(folder, [1000])
    answer = threading.Event()
    asked: list[int] = []
    real = folder.get_range

    def get_range(path: str, start: int, length: int) -> memoryview:
        asked.append(start)
        if len(asked) > 1:
            answer.wait(20)
        return real(path, start, length)

    monkeypatch.setattr(folder, "get_range", get_range)
    before = threading.active_count()
    stream = prefetch(Samples(TokenStream(folder, manifest, "train"), 4), itertools.count(), depth=2)
    next(stream)
    assert process.wait_until(lambda: len(asked) == 3, 2, poll_s=0.002)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 10
    answer.set()
    assert process.wait_until(lambda: threading.active_count() == before, 2, poll_s=0.002)
    assert len(asked) == 3, "what was not on its way is not asked for any more"


def test_a_sample_is_a_read_only_view_and_not_a_copy(folder: Bucket, write: Write) -> None:
    manifest, _ = write(folder, [330])
    samples = Samples(TokenStream(folder, manifest, "train"), 10)
    inside, across = (next(prefetch(samples, [index]))[1] for index in (0, 3))
    assert inside.base is not None
    assert not inside.flags.writeable
    assert len(across) == 11  # tokens 30 to 40, of two blocks
    assert samples[0].flags.writeable


class _OneBlock:
    """A bucket in which every block of every shard is the same."""

    url = "memory://"

    def __init__(self, block: bytes) -> None:
        self._block = block
        self.asked: list[tuple[str, int]] = []

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        self.asked.append((path, start))
        return memoryview(self._block)[:length]


@pytest.fixture(scope="module")
def trillion() -> Iterator[tuple[TokenManifest, _OneBlock]]:
    """10^12 tokens in 60,000 shards of eight blocks."""
    shards, per_shard = 60_000, 16 << 20
    block = np.arange(2 << 20, dtype="<u4").tobytes()
    blocks = digest.of_bytes(block, "xxh3").removeprefix("xxh3:") * 8
    listed = tuple(Shard(f"train-{i:05d}-00000000.bin", per_shard, 1, blocks, "xxh3:0") for i in range(shards))
    total = shards * per_shard
    split = Split(total, shards, listed, (Stage("web", 0, total, shards, {"web": total}),))
    manifest = TokenManifest(
        dtype="uint32",
        vocab_size=1 << 31,
        tokenizer=TokenizerInfo("none", "blake3:00", eos_id=1, bos_id=None),
        splits={"train": split, "validation": Split(0, 0, (), ())},
        sources=(),
        created="2026-01-01T00:00:00+00:00",
    )
    yield manifest, _OneBlock(block)


def test_a_run_resumes_at_the_billionth_sample_of_a_trillion_tokens_at_once(
    trillion: tuple[TokenManifest, _OneBlock],
) -> None:
    manifest, bucket = trillion
    length, index = 1000, 10**9 - 41_000_000  # a sample that exists in the first epoch
    next(prefetch(Samples(TokenStream(bucket, manifest, "train"), length), [0]))  # type: ignore[arg-type]
    bucket.asked.clear()
    vars(manifest.splits["train"]).pop("starts")  # counted as well

    began = time.process_time()
    samples = Samples(TokenStream(bucket, manifest, "train"), length)  # type: ignore[arg-type]
    stream = prefetch(samples, itertools.count(index), depth=0)
    got, sample = next(stream)
    assert time.process_time() - began < 0.05
    stream.close()

    token = index * length
    assert got == index < samples.count
    assert bucket.asked == [
        (manifest.splits["train"].shards[token // (16 << 20)].object, token % (16 << 20) // (2 << 20) * (8 << 20))
    ]
    assert sample[0] == token % (2 << 20)


def test_reading_imports_no_heavy_modules() -> None:
    heavy = ["boto3", "botocore", "psutil", "torch", "http.client", "numpy.typing", "asyncio", "smart_open"]
    code = f"import sys, bafogpt.storage.tokens.stream; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
