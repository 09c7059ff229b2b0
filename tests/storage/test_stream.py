from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bafogpt.core.errors import CorruptError, DataError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream
from tests.storage.tools import damage, record

Write = Callable[..., Any]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_the_stream_is_the_tokens_that_were_written(anywhere: Bucket, write: Write, dtype: str) -> None:
    manifest, tokens = write(anywhere, [100, 3, 250, 7, 500], dtype=dtype)
    assert len(manifest.splits["train"].shards) > 3
    stream = TokenStream(anywhere, manifest, "train")
    assert stream.tokens == len(tokens)
    whole = stream.read(0, stream.tokens)
    assert whole.dtype == np.dtype(dtype)
    assert np.array_equal(whole, tokens)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_span_is_right_whatever_the_sizes(folder: Bucket, write: Write, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=8))
    block = data.draw(st.sampled_from([2, 6, 32, 64]))
    shard = data.draw(st.sampled_from([10, 64, 130, 4096]))
    manifest, tokens = write(folder, lengths, shard_bytes=shard, block_bytes=block)
    start = data.draw(st.integers(0, len(tokens)))
    count = data.draw(st.integers(0, len(tokens) - start))
    stream = TokenStream(folder, manifest, "train")
    assert np.array_equal(stream.read(start, count), tokens[start : start + count])


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 101), (100, 1), (5, -1)])
def test_a_span_outside_the_stream_is_an_index_error(folder: Bucket, write: Write, start: int, count: int) -> None:
    manifest, _ = write(folder, [100])
    stream = TokenStream(folder, manifest, "train")
    for read in (stream.read, stream.documents, stream.learned, stream.blocks):
        with pytest.raises(IndexError):
            read(start, count)


def test_a_corrupt_byte_names_shard_and_range_and_the_rest_stays_readable(anywhere: Bucket, write: Write) -> None:
    manifest, tokens = write(anywhere, [300])
    shard = manifest.splits["train"].shards[1]
    damage(anywhere, shard.object, 70)  # the second block of the second shard: tokens 160 to 191
    stream = TokenStream(anywhere, manifest, "train")
    with pytest.raises(CorruptError, match=rf"{shard.object} bytes 64-127: does not match its hash"):
        stream.read(150, 20)
    assert np.array_equal(stream.read(0, 160), tokens[:160])
    assert np.array_equal(stream.read(192, 108), tokens[192:])


def test_a_bit_that_flips_on_the_way_is_fetched_again(
    folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, tokens = write(folder, [100])
    shard = manifest.splits["train"].shards[0].object
    good = bytes(folder.get_range(shard, 0, 64))
    answers = iter([bytes([good[0] ^ 1]) + good[1:], good])
    monkeypatch.setattr(folder, "get_range", lambda *_: next(answers))
    assert np.array_equal(TokenStream(folder, manifest, "train").read(0, 20), tokens[:20])
    assert list(answers) == []


def test_a_shard_that_is_cut_short_is_corrupt(folder: Bucket, write: Write) -> None:
    manifest, _ = write(folder, [100])
    shard = manifest.splits["train"].shards[0]
    folder.put(shard.object, folder.get(shard.object)[:150])
    with pytest.raises(CorruptError, match=shard.object):
        TokenStream(folder, manifest, "train").read(90, 10)


def test_reading_on_fetches_each_block_once(folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = write(folder, [320])
    requests = record(monkeypatch, folder, "get_range", lambda *span: span[:2])
    samples = Samples(TokenStream(folder, manifest, "train"), 10)
    for i in range(samples.count):
        samples[i]
    assert len(requests) == len(set(requests)) == 10


def test_a_read_in_the_middle_fetches_one_block(folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = write(folder, [320])
    requests = record(monkeypatch, folder, "get_range", lambda *span: span[:2])
    TokenStream(folder, manifest, "train").read(200, 4)
    assert requests == [(manifest.splits["train"].shards[1].object, 128)]


def test_the_cache_serves_another_reader_without_the_bucket(
    folder: Bucket, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, tokens = write(folder, [320])
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    TokenStream(folder, manifest, "train", cache=cache).read(0, 320)
    requests = record(monkeypatch, folder, "get_range", lambda *span: span[:2])
    again = TokenStream(folder, manifest, "train", cache=BlockCache(tmp_path / "cache", 1 << 20))
    assert np.array_equal(again.read(0, 320), tokens)
    assert requests == []


def test_a_damaged_cache_is_not_believed(folder: Bucket, write: Write, tmp_path: Path) -> None:
    manifest, tokens = write(folder, [320])
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    TokenStream(folder, manifest, "train", cache=cache).read(0, 320)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(TokenStream(folder, manifest, "train", cache=cache).read(0, 320), tokens)


def test_the_cache_stays_within_its_limit_and_drops_the_least_recently_used(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 250)
    names = [f"{i:032x}" for i in range(3)]
    (tmp_path / "another file").write_bytes(bytes(1000))
    cache.put(names[0], b"0" * 100)
    cache.put(names[1], b"1" * 100)
    assert cache.get(names[0]) == b"0" * 100
    cache.put(names[2], b"2" * 100)
    assert cache.get(names[1]) is None
    assert cache.get(names[0])
    assert cache.get(names[2])
    cache.put("f" * 32, bytes(251))
    assert cache.get("f" * 32) is None
    assert (tmp_path / "another file").exists()


def test_a_cache_that_cannot_be_written_does_not_stop_reading(
    folder: Bucket, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, tokens = write(folder, [100])
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    (tmp_path / "cache").rmdir()
    assert np.array_equal(TokenStream(folder, manifest, "train", cache=cache).read(0, 100), tokens)
    assert "block cache is not written" in caplog.text


@pytest.mark.parametrize(("tokens", "length", "count"), [(33, 32, 1), (64, 32, 1), (65, 32, 2), (100, 1, 99)])
def test_a_sample_is_a_window_that_shares_its_last_token_with_the_next(
    folder: Bucket, write: Write, tokens: int, length: int, count: int
) -> None:
    manifest, written = write(folder, [tokens])
    samples = Samples(TokenStream(folder, manifest, "train"), length)
    assert samples.count == count
    for i in range(count):
        assert np.array_equal(samples[i], written[length * i : length * i + length + 1])


def test_the_next_epoch_gives_the_same_samples_in_the_same_order(folder: Bucket, write: Write) -> None:
    manifest, _ = write(folder, [321])
    samples = Samples(TokenStream(folder, manifest, "train"), 32)
    for i in (0, 9, 4):
        for epoch in (1, 2, 1000):
            assert np.array_equal(samples[i + epoch * samples.count], samples[i])
    with pytest.raises(IndexError):
        samples[-1]


def test_too_little_text_for_one_sample_says_so(folder: Bucket, write: Write) -> None:
    manifest, _ = write(folder, [32])
    with pytest.raises(DataError, match="has 32 tokens, one sample of 32 needs 33"):
        Samples(TokenStream(folder, manifest, "train"), 32)
    with pytest.raises(DataError, match="has 0 tokens"):
        Samples(TokenStream(folder, manifest, "validation"), 32)


def test_the_default_block_is_read_in_one_request(
    folder: Bucket, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, tokens = write(folder, [3000], shard_bytes=64 << 20, block_bytes=8 << 20)
    requests = record(monkeypatch, folder, "get_range", lambda *span: span[:2])
    stream = TokenStream(folder, manifest, "train")
    assert np.array_equal(stream.read(1, 2999), tokens[1:])
    assert len(requests) == 1
