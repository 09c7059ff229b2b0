"""Buckets of both kinds, and small datasets in them."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bafogpt.core.settings import Settings
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import DType, TextSource, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.writer import TokenWriter
from bafogpt.storage.transfer import upload

TOKENIZER = TokenizerInfo("bytes", "blake3:00", eos_id=1, bos_id=None)


@pytest.fixture(params=["s3", "file"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """An empty folder on S3 and one on disk: the same test for both."""
    if request.param == "file":
        made = Bucket.open(f"file://{tmp_path}/a folder", Settings())
        made.create()
        return made
    s3 = request.getfixturevalue("s3")
    return Bucket.open(f"{s3.url}/{uuid.uuid4().hex}", s3.settings)


@pytest.fixture
def folder(tmp_path: Path) -> Bucket:
    """An empty folder on disk, for what does not depend on the kind."""
    made = Bucket.open(f"file://{tmp_path}/bucket", Settings())
    made.create()
    return made


Written = tuple[TokenManifest, np.ndarray[Any, Any]]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Written]]:
    """``write(bucket, lengths)`` stores documents of those lengths in two stages: the manifest, and the tokens."""

    def store(bucket: Bucket, lengths: list[int], *, dtype: DType = "uint16", seed: int = 0, **sizes: int) -> Written:
        options = {"shard_bytes": 256, "block_bytes": 64, **sizes}
        random = np.random.default_rng(seed)
        top = 1 << 16 if dtype == "uint16" else 200_000
        documents = [random.integers(0, top, length) for length in lengths]
        with TokenWriter(bucket, dtype=dtype, workdir=tmp_path / "work", **options) as writer:
            for i, tokens in enumerate(documents):
                stage = "dictionary" if i < len(documents) // 2 else "news"
                writer.add("train", stage, f"source-{i % 2}", tokens)
            manifest = writer.finish(
                tokenizer=TOKENIZER, vocab_size=top, sources=[TextSource("a.jsonl", "blake3:11", len(documents))]
            )
        return manifest, np.concatenate(documents) if documents else np.array([], dtype=np.int64)

    yield store
    assert not list((tmp_path / "work").glob("*")), "temporary files are left"


@pytest.fixture
def random_file(tmp_path: Path) -> Callable[[int], Path]:
    """``random_file(size)`` is a new file of random bytes."""

    def write(size: int) -> Path:
        path = tmp_path / f"{size}-{len(list(tmp_path.iterdir()))}.bin"
        path.write_bytes(random.Random(size).randbytes(size))
        return path

    return write


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """``save(seed, a=100, b=b"text")`` is a new checkpoint folder: files of random bytes, or with that content."""

    def make(seed: int = 0, **sizes: int | bytes) -> Path:
        folder = tmp_path / f"saved-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, size in sizes.items():
            data = size if isinstance(size, bytes) else random.Random(f"{name}{seed}").randbytes(size)
            (folder / name).write_bytes(data)
        return folder

    return make


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Uploads use the smallest parts that S3 allows; their size."""
    for module in (upload, transfer):
        monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    return 5 << 20


@pytest.fixture
def full_disk() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """``with full_disk(size)``: a file that grows beyond ``size`` bytes is refused as a full disk refuses it.

    It holds for this whole process, so for no longer than the call under test: pytest writes files too.
    """

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]
