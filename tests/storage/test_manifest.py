from __future__ import annotations

import dataclasses
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bafogpt.core import digest
from bafogpt.core.errors import DataError, NotFoundError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import (
    Shard,
    Split,
    Stage,
    TextSource,
    TokenizerInfo,
    TokenManifest,
    from_json,
    load,
)
from bafogpt.storage.tokens.writer import TokenWriter

TOKENIZER = TokenizerInfo("bytes", "blake3:00", eos_id=1, bos_id=None)


def test_a_written_dataset_reads_back(anywhere: Bucket, write: Callable[..., Any]) -> None:
    manifest, tokens = write(anywhere, [100, 3, 250, 7])
    found = load(anywhere)
    assert found == manifest
    assert found.digest == manifest.digest
    assert found.splits["train"].tokens == len(tokens)
    assert found.splits["train"].documents == 4
    assert found.splits["validation"] == Split(0, 0, (), ())


def test_stages_lie_in_the_stream_as_they_were_added(folder: Bucket, write: Callable[..., Any]) -> None:
    manifest, _ = write(folder, [100, 3, 250, 7])
    first, second = manifest.splits["train"].stages
    assert first == Stage("dictionary", 0, 103, 2, {"source-0": 100, "source-1": 3})
    assert second == Stage("news", 103, 257, 2, {"source-0": 250, "source-1": 7})


def test_shards_and_document_offsets_match_the_manifest(folder: Bucket, write: Callable[..., Any]) -> None:
    lengths = [100, 3, 250, 7]
    manifest, tokens = write(folder, lengths)
    split = manifest.splits["train"]
    assert [shard.tokens for shard in split.shards] == [128, 128, 104]
    begins = []
    for shard, start in zip(split.shards, split.starts, strict=False):
        data = folder.get(shard.object)
        assert np.array_equal(np.frombuffer(data, "<u2"), tokens[start : start + shard.tokens])
        hashes = [digest.of_bytes(data[at : at + 64], "xxh3")[5:] for at in range(0, len(data), 64)]
        assert shard.blocks == "".join(hashes)
        offsets = folder.get(shard.docs_object)
        assert digest.of_bytes(offsets, "xxh3") == shard.docs_digest
        assert len(offsets) == 8 * shard.documents
        begins += [start + int(offset) for offset in np.frombuffer(offsets, "<u8")]
    assert begins == [0, 100, 103, 353]


def test_the_same_data_written_twice_have_the_same_digest_and_names(
    folder: Bucket, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = write(folder.child("a"), [100, 300])
    second, _ = write(folder.child("b"), [100, 300])
    assert dataclasses.replace(second, created="another time").digest == first.digest
    assert second.splits == first.splits
    other, _ = write(folder.child("c"), [100, 300], seed=1)
    assert other.digest != first.digest


def test_a_dataset_written_again_leaves_the_old_shards_alone(folder: Bucket, write: Callable[..., Any]) -> None:
    old, _ = write(folder, [400])
    before = {shard.object: folder.get(shard.object) for shard in old.splits["train"].shards}
    new, _ = write(folder, [400], seed=1)
    assert load(folder).digest == new.digest != old.digest
    assert {name: folder.get(name) for name in before} == before


def test_the_manifest_and_the_tokenizer_come_at_the_end(folder: Bucket, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with TokenWriter(folder, dtype="uint16", workdir=tmp_path / "work", shard_bytes=4, block_bytes=2) as writer:
        writer.add("train", "news", "a", np.array([5, 6, 1]))
        names = [info.path for info in folder.list()]
        assert names
        assert "manifest.json" not in names
        writer.finish(tokenizer=TOKENIZER, vocab_size=10, sources=[], tokenizer_file=tmp_path / "tokenizer.json")
    assert folder.get("tokenizer/tokenizer.json") == b"{}"
    assert load(folder).splits["train"].tokens == 3


@pytest.mark.parametrize("token", [-1, 1 << 16])
def test_a_token_that_does_not_fit_is_refused(folder: Bucket, tmp_path: Any, token: int) -> None:
    with (
        TokenWriter(folder, dtype="uint16", workdir=tmp_path) as writer,
        pytest.raises(DataError, match="does not fit uint16"),
    ):
        writer.add("train", "news", "a", np.array([5, token, 1]))
    assert folder.list() == []


def test_a_token_outside_the_vocabulary_is_refused(folder: Bucket, tmp_path: Any) -> None:
    with TokenWriter(folder, dtype="uint32", workdir=tmp_path) as writer:
        writer.add("train", "news", "a", np.array([5, 320, 1]))
        with pytest.raises(DataError, match="320 is outside a vocabulary of 320"):
            writer.finish(tokenizer=TOKENIZER, vocab_size=320, sources=[])
    assert not folder.exists("manifest.json")


def test_no_dataset_says_how_to_make_one(anywhere: Bucket) -> None:
    with pytest.raises(NotFoundError, match="no dataset at") as raised:
        load(anywhere.child("data/zulu"))
    assert raised.value.hint.startswith("bafogpt data prepare")


def test_a_trillion_tokens_are_located_quickly_in_little_memory() -> None:
    shards, per_shard = 60_000, 16 << 20
    one = [Shard(f"train-{i:05d}-00000000.bin", per_shard, 1, f"{i:032x}" * 8, f"xxh3:{i:032x}") for i in range(shards)]
    total = shards * per_shard
    assert total > 10**12
    made = TokenManifest(
        dtype="uint32",
        vocab_size=256_000,
        tokenizer=TOKENIZER,
        splits={
            "train": Split(total, shards, tuple(one), (Stage("web", 0, total, shards, {"web": total}),)),
            "validation": Split(0, 0, (), ()),
        },
        sources=(TextSource("web", "blake3:22", shards),),
        created="2026-01-01T00:00:00+00:00",
    )
    data = made.to_json()
    del made, one
    assert len(data) < 64 << 20

    tracemalloc.start()
    split = from_json(data, "here").splits["train"]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 64 << 20

    began = time.process_time()
    assert split.locate(total - 1) == (shards - 1, per_shard - 1)
    assert split.locate(per_shard) == (1, 0)
    assert time.process_time() - began < 0.05
