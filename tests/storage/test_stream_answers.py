"""What is to be learned of a packed dataset lies beside its tokens, verified like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bafogpt.core.errors import CorruptError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.manifest import Packing, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.stream import TokenStream
from bafogpt.storage.tokens.writer import TokenWriter

PACKING = Packing(16, "plain", "{{ messages }}")
Document = tuple[int, list[tuple[int, int]]]


def write(bucket: Bucket, work: Path, documents: list[Document], shard_bytes: int = 64) -> TokenManifest:
    """Documents of a length, with the spans that are to be learned."""
    options: Any = {"shard_bytes": shard_bytes, "block_bytes": 8, "packing": PACKING}
    with TokenWriter(bucket, dtype="uint16", workdir=work, **options) as writer:
        for length, answers in documents:
            writer.add("train", "instructions", "a", np.full(length, 7), answers)
        return writer.finish(tokenizer=TokenizerInfo("bytes", "blake3:00", 1, None), vocab_size=320, sources=[])


def expected(documents: list[Document]) -> list[bool]:
    flags = []
    for length, answers in documents:
        flags += [any(begin <= at < end for begin, end in answers) for at in range(length)]
    return flags


def test_answers_are_where_they_were_written_across_shards(anywhere: Bucket, tmp_path: Path) -> None:
    documents: list[Document] = [(10, [(2, 4), (8, 10)]), (100, [(20, 90)]), (3, [])]
    manifest = write(anywhere, tmp_path, documents)
    assert manifests.load(anywhere) == manifest
    assert manifest.packing == PACKING
    stream = TokenStream(anywhere, manifest, "train")
    assert stream.learned(0, 113).tolist() == expected(documents)
    assert stream.learned(40, 30).tolist() == expected(documents)[40:70]
    assert stream.learned(5, 0).tolist() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_of_any_span_are_those_in_it(folder: Bucket, tmp_path: Path, data: st.DataObject) -> None:
    documents: list[Document] = []
    for length in data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8)):
        cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=6)))
        documents.append((length, list(zip(cuts[::2], cuts[1::2], strict=False))))
    manifest = write(folder, tmp_path, documents, data.draw(st.sampled_from([8, 16, 64, 4096])))
    flags = expected(documents)
    start = data.draw(st.integers(0, len(flags)))
    count = data.draw(st.integers(0, len(flags) - start))
    assert TokenStream(folder, manifest, "train").learned(start, count).tolist() == flags[start : start + count]


def test_running_text_is_learned_as_a_whole_and_has_no_answers(folder: Bucket, tmp_path: Path) -> None:
    with TokenWriter(folder, dtype="uint16", workdir=tmp_path) as writer:
        writer.add("train", "news", "a", np.full(9, 7))
        manifest = writer.finish(tokenizer=TokenizerInfo("bytes", "blake3:00", 1, None), vocab_size=320, sources=[])
    assert TokenStream(folder, manifest, "train").learned(2, 5).all()
    text = manifest.to_json().decode()
    assert "packing" not in text
    assert "answers" not in text
    assert [info.path for info in folder.list("shards/")] == sorted(
        path for shard in manifest.splits["train"].shards for path in (shard.object, shard.docs_object)
    )


def test_an_error_in_the_answers_names_their_object(folder: Bucket, tmp_path: Path) -> None:
    manifest = write(folder, tmp_path, [(10, [(2, 4)])])
    (shard,) = manifest.splits["train"].shards
    folder.put(shard.answers_object, folder.get(shard.answers_object)[::-1])
    with pytest.raises(CorruptError, match=rf"{shard.answers_object} bytes 0-15: does not match its hash"):
        TokenStream(folder, manifest, "train").learned(0, 10)
