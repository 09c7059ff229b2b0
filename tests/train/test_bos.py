"""Every sample begins with ``<bos>`` where the data says so, and the stream stays exact."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bafogpt.core.errors import ConfigError, DataError
from bafogpt.core.settings import Settings
from bafogpt.data import tokenizer as tokenizers
from bafogpt.data.prepare import PrepareOptions, prepare
from bafogpt.model import eval_samples as texts
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.manifest import TextSource, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.stream import Samples, TokenStream
from bafogpt.storage.tokens.writer import TokenWriter
from bafogpt.train import batches
from bafogpt.train.trainer_io import TrainerFiles
from bafogpt.train.validation import plan_validation
from tests.talking import make_model

from .conftest import tiny

EOS, BOS = 1, 2


def dataset(folder: Path, lengths: list[int], *, opened: bool) -> tuple[Bucket, TokenManifest]:
    """Documents of those lengths, their end (and begin) included; tokens from 3 on tell where they stand."""
    bucket = Bucket.open(f"file://{folder}/bucket", Settings())
    bucket.create()
    position = 3
    with TokenWriter(bucket, dtype="uint16", workdir=folder / "work", shard_bytes=256, block_bytes=64) as writer:
        for number, length in enumerate(lengths):
            ids = np.arange(position, position + length, dtype=np.uint16)
            ids[-1] = EOS
            if opened:
                ids[0] = BOS
            position += length
            for split in ("train", "validation"):
                stage = "dictionary" if number < len(lengths) // 2 else "news"
                writer.add(split, stage, "s", ids)
        info = TokenizerInfo("bytes", "blake3:00", EOS, BOS, opened)
        made = writer.finish(
            tokenizer=info, vocab_size=1 << 16, sources=[TextSource("s", "d", len(lengths))], tokenizer_file=None
        )
    return bucket, made


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=6, max_size=20), st.integers(2, 12), st.booleans())
def test_each_token_of_the_stream_is_predicted_once_and_each_sample_begins_with_bos(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, opened: bool
) -> None:
    bucket, manifest = dataset(tmp_path_factory.mktemp("bos"), lengths, opened=opened)
    samples = Samples(TokenStream(bucket, manifest, "train"), length, BOS)
    stream = samples.stream.read(0, samples.stream.tokens)
    predicted: Counter[int] = Counter()
    for index in range(samples.count):
        row = batches.sample_row(samples, index, samples[index], separate_documents=True)
        assert row.tokens[0] == BOS and len(row.tokens) == length + 1
        assert not (row.tokens[:2] == BOS).all(), "one <bos>, not two"
        places = samples.start(index) + row.first_target + np.arange(length)
        assert row.tokens[1:].tolist() == stream[places].tolist()
        predicted.update(places.tolist())
        assert row.documents is not None and row.documents[0] == 0 and set(np.diff(row.documents)) <= {0, 1}
        ends = np.flatnonzero(row.tokens[:-2] == EOS)
        assert (np.diff(row.documents)[ends] == 1).all(), "after the end of a document comes another"
    for place in range(samples.count * length):
        twice = place % length == 0 and place > 0 and stream[place - length] == BOS
        begins = place % length == 0 and stream[place] == BOS
        assert predicted[place] == 1 + twice - begins


def test_an_id_without_a_row_in_the_model_is_named(tmp_path: Path) -> None:
    bucket, manifest = dataset(tmp_path, [10, 10, 10, 10], opened=True)
    enough, few = (Samples(TokenStream(bucket, manifest, "train"), 8, BOS, rows) for rows in (43, 30))
    assert [batches.sample_row(enough, index, enough[index]).tokens[0] for index in range(enough.count)] == [BOS] * 4
    assert batches.sample_row(few, 1, few[1]).tokens.max() < 30
    with pytest.raises(DataError, match=r"has the token 3[0-9], and the model 30 rows"):
        [batches.sample_row(few, index, few[index]) for index in range(few.count)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=6, max_size=20), st.integers(2, 12), st.booleans())
def test_validation_takes_each_token_of_a_stage_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, opened: bool
) -> None:
    bucket, manifest = dataset(tmp_path_factory.mktemp("bos"), lengths, opened=opened)
    split = manifest.splits["validation"]
    samples = Samples(TokenStream(bucket, manifest, "validation"), length, BOS)
    found = plan_validation(samples, split, None)
    for stage, slices in zip(found.stages, found.slices, strict=True):
        places = [samples.start(p.sample) + place for p in slices for place in range(p.low, p.high)]
        end = min(stage.start_token + stage.tokens, samples.count * length)
        assert places == list(range(stage.start_token, end))


@pytest.fixture
def base(starter: Bucket, tmp_path: Path) -> str:
    """A model folder of the bucket whose tokenizer adds ``<bos>``, and data prepared with it without: its name."""
    name = uuid.uuid4().hex[:8]
    folder = make_model(tmp_path / name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    for file in folder.iterdir():
        starter.put(f"models/{name}/{file.name}", file.read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("Sawubona mhlaba, ngiyabonga kakhulu. " * 200 + "\n")
    tokenizer = tokenizers.load(str(folder))
    for out, wanted in (("with", None), ("without", False)):
        options = PrepareOptions(bos=wanted, validation=0, stage="news")
        prepare([str(text)], tokenizer=tokenizer, out=starter.child(f"data/{name}-{out}"), options=options)
    return name


def of_base(base: str, data: str, **over: Any) -> Any:
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "head_size": 12, "intermediate_size": 48}
    more = {"attention_scores_scalar": 12, "sliding_window_size": 16, "block_size": 512}
    return tiny(
        tokens=2 * 256,
        data={"path": f"data/{base}-{data}", **over},
        model={"checkpoint": f"models/{base}", "overrides": {**shape, **more}},
        validation={"every": 0},
    )


def test_data_without_bos_is_refused_for_a_base_with_bos(
    train_here: Any, base: str, starter: Bucket, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="texts that begin with <bos>") as refused:
        train_here(of_base(base, "without"), TrainerFiles(tmp_path / "refused"))
    assert "train.data.bos=true" in (refused.value.hint or "")
    for number, data, over in ((1, "with", {}), (2, "without", {"bos": True}), (3, "without", {"bos": False})):
        result = train_here(of_base(base, data, **over), TrainerFiles(tmp_path / f"taken-{number}"))
        assert result.outcome == "finished"
    manifest = manifests.load(starter.child(f"data/{base}-with"))
    assert manifest.tokenizer.add_bos and manifest.tokenizer.bos_id == BOS
    assert not manifests.load(starter.child(f"data/{base}-without")).tokenizer.add_bos


def test_evaluation_text_begins_with_bos_if_the_tokenizer_adds_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    plain = texts.text_samples(ModelFolder.open(folder), ["starter"], Settings(), count=3, tokens=32)
    before = texts.measure(ModelFolder.open(folder), "Sawubona " * 100)
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    begun = texts.text_samples(ModelFolder.open(folder), ["starter"], Settings(), count=3, tokens=32)
    after = texts.measure(ModelFolder.open(folder), "Sawubona " * 100)
    assert all(int(each[0]) == BOS and len(each) == 32 for each in begun)
    assert torch.cat(begun).tolist() != torch.cat(plain).tolist()
    assert torch.cat([each[1:] for each in begun]).tolist() == torch.cat(plain).tolist()[: 3 * 31]
    assert (before.tokens, after.tokens) == (899, 900), "the first token is predicted, too"
    assert before.loss != after.loss
