"""Where the bench works: a folder, a real S3 server, and the dataset that all runs read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import server
from bafogpt.storage.tokens.manifest import TextSource, TokenizerInfo
from bafogpt.storage.tokens.writer import TokenWriter

DATA = "data/faults"
BUCKET = "s3://faults"


@dataclass(frozen=True)
class Bench:
    """``bucket`` is reached without a proxy; ``environment`` is what a process needs to reach it, credentials too."""

    home: Path
    bucket: Bucket
    settings: Settings
    environment: dict[str, str]
    endpoint: str


@contextlib.contextmanager
def start_bench(home: Path) -> Iterator[Bench]:
    """A server of its own in ``home``, for as long as the block."""
    with server.lease(home) as lease:
        endpoint = lease.endpoint
        settings = Settings(bucket=BUCKET, s3_endpoint=endpoint.url, home=str(home))
        os.environ.update(endpoint.environment())
        bucket = Bucket.open(BUCKET, settings)
        bucket.create()
        write_dataset(bucket, home / "dataset")
        own = {"BAFOGPT_BUCKET": BUCKET, "BAFOGPT_HOME": str(home)}
        yield Bench(home, bucket, settings, endpoint.environment() | own, endpoint.url)


def write_dataset(bucket: Bucket, workdir: Path, tokens: int = 1000, vocabulary: int = 256) -> None:
    """The dataset that all runs read: some 60 samples, so that a run of 192 passes the epoch edge three times."""
    chance = np.random.default_rng(0)
    sizes = {"shard_bytes": 1024, "block_bytes": 512}
    with TokenWriter(bucket.child(DATA), dtype="uint16", workdir=workdir, **sizes) as writer:
        for _ in range(tokens // 50):
            writer.add("train", "news", "x", chance.integers(2, vocabulary, 50))
        writer.add("validation", "news", "x", chance.integers(2, vocabulary, 50))
        writer.finish(
            tokenizer=TokenizerInfo("bytes", "blake3:00", eos_id=1, bos_id=None),
            vocab_size=vocabulary,
            sources=[TextSource("x", "blake3:11", 1)],
        )
