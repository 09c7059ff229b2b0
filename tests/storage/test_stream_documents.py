from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bafogpt.core.errors import CorruptError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.stream import BlockCache, TokenStream
from tests.storage.tools import record

Write = Callable[..., Any]


def test_documents_begin_where_they_were_written_across_shards(anywhere: Bucket, write: Write) -> None:
    manifest, _ = write(anywhere, [100, 3, 250, 7, 5])  # shards of 128 tokens
    stream = TokenStream(anywhere, manifest, "train")
    whole = stream.documents(0, stream.tokens)
    assert whole.dtype == np.int64
    assert whole.tolist() == [0, 100, 103, 353, 360]
    assert stream.documents(100, 4).tolist() == [0, 3]
    assert stream.documents(101, 2).tolist() == []
    assert stream.documents(110, 250).tolist() == [243], "one long document fills a whole shard"
    assert stream.documents(353, 8).tolist() == [0, 7]
    assert stream.documents(50, 0).tolist() == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_documents_of_any_span_are_those_that_begin_in_it(folder: Bucket, write: Write, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=12))
    shard = data.draw(st.sampled_from([2, 10, 64, 4096]))
    manifest, tokens = write(folder, lengths, shard_bytes=shard, block_bytes=2)
    start = data.draw(st.integers(0, len(tokens)))
    count = data.draw(st.integers(0, len(tokens) - start))
    begins = [0, *accumulate(lengths)][:-1]
    found = TokenStream(folder, manifest, "train").documents(start, count)
    assert found.tolist() == [at - start for at in begins if start <= at < start + count]


def test_an_error_in_the_document_offsets_names_their_object(folder: Bucket, write: Write) -> None:
    manifest, tokens = write(folder, [100, 100])
    shard = manifest.splits["train"].shards[0]
    stream = TokenStream(folder, manifest, "train")
    folder.put(shard.docs_object, folder.get(shard.docs_object)[::-1])
    with pytest.raises(CorruptError, match=rf"{shard.docs_object} bytes 0-15: does not match its hash"):
        stream.documents(0, 128)
    assert np.array_equal(stream.read(0, 200), tokens), "the tokens are as good as before"


def test_document_offsets_are_fetched_once_and_only_when_asked_for(
    folder: Bucket, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = write(folder, [100, 100])
    asked = record(monkeypatch, folder, "get_range")
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    stream = TokenStream(folder, manifest, "train", cache=cache)
    stream.read(0, 200)
    assert not any(path.endswith(".docs") for path in asked)
    asked.clear()
    for start in range(100):
        stream.documents(start, 100)
    assert asked == [shard.docs_object for shard in manifest.splits["train"].shards]
    TokenStream(folder, manifest, "train", cache=BlockCache(tmp_path / "cache", 1 << 20)).documents(0, 200)
    assert len(asked) == 2, "another process of this machine takes them from the disk"
