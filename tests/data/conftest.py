"""Small corpora and a small tokenizer, made for each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from bafogpt.core.settings import Settings
from bafogpt.data.vocabulary.train import train
from bafogpt.storage.bucket import Bucket

Corpus = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """``corpus("news_a.jsonl", {"text": …}, …)`` writes records to a file; a string is a line as it is."""

    def write(name: str, *records: dict[str, Any] | str) -> Path:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in records]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 700 pieces like Gemma's, trained on the starter's English; it has no tokenizer.model."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    train(["starter"], folder, pieces=700, language="eng")
    return folder


@pytest.fixture
def local(tmp_path: Path) -> Bucket:
    """A bucket that is a local folder."""
    bucket = Bucket.open(f"file://{tmp_path}/bucket", Settings())
    bucket.create()
    return bucket


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A byte-level BPE ``tokenizer.json`` with ``<pad>``, ``<eos>`` and ``<bos>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<pad>", "<eos>", "<bos>", *alphabet])}
    engine = FastTokenizer(models.BPE(vocab=vocab, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    folder = tmp_path / "small-bpe"
    folder.mkdir()
    engine.save(str(folder / "tokenizer.json"))
    return folder
