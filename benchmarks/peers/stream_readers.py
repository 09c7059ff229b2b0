"""The readers that ``benchmarks/stream.py`` compares; each runs alone in a fresh process and reports on itself.

    python stream_readers.py NAME JOB        JOB is JSON; prints one line of JSON

A reader is a generator: it imports what it needs and yields once, then yields the number of tokens of each piece that
it hands over, in order. What hands over samples yields one sample at a time, as a training loop would take them.
This file runs in the project's environment and in the peers', so it imports nothing of either at its top.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BLOCK = 8 << 20
ITEM = 4
Job = dict[str, Any]


def in_order(tasks: Iterable[Any], function: Callable[[Any], Any], in_flight: int) -> Iterator[Any]:
    """``function`` of each task, in order, ``in_flight`` at a time."""
    coming: deque[Any] = deque()
    with ThreadPoolExecutor(in_flight) as pool:
        for task in tasks:
            coming.append(pool.submit(function, task))
            if len(coming) > in_flight:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def ranges(job: Job) -> list[tuple[str, int, int]]:
    """(object, start, length) of each block of the dataset."""
    return [(name, start, min(BLOCK, size - start)) for name, size in job["objects"] for start in range(0, size, BLOCK)]


def socket_get(job: Job) -> Iterator[int]:
    """The ceiling: plain GETs on two connections, received into one buffer and forgotten."""
    import socket
    from urllib.parse import urlsplit

    yield 0

    def get(url: str) -> int:
        parts = urlsplit(url)
        buffer = bytearray(1 << 20)
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
            path = f"{parts.path}?{parts.query}"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            received = 0
            while count := connection.recv_into(buffer):
                received += count
        return received

    for received in in_order(job["urls"], get, 2):
        yield received // ITEM


def _store(job: Job) -> Any:
    from obstore.store import S3Store

    return S3Store(
        job["bucket"],
        endpoint=job["endpoint"],
        region="us-east-1",
        client_options={"allow_http": True},
    )


def obstore_ranges(job: Job) -> Iterator[int]:
    """What the project's reader is measured against: the same client, the same ranges, nothing done with them."""
    import obstore

    yield 0
    store = _store(job)

    def get(task: tuple[str, int, int]) -> Any:
        return obstore.get_range(store, task[0], start=task[1], length=task[2])

    for data in in_order(ranges(job), get, 2):
        yield len(data) // ITEM


def obstore_stream(job: Job) -> Iterator[int]:
    import obstore

    yield 0
    store = _store(job)
    for name, _ in job["objects"]:
        for chunk in obstore.get(store, name).stream(min_chunk_size=BLOCK):
            yield len(chunk) // ITEM


def boto3_ranges(job: Job) -> Iterator[int]:
    import boto3

    yield 0
    client = boto3.client("s3", endpoint_url=job["endpoint"])

    def get(task: tuple[str, int, int]) -> bytes:
        span = f"bytes={task[1]}-{task[1] + task[2] - 1}"
        answer: bytes = client.get_object(Bucket=job["bucket"], Key=task[0], Range=span)["Body"].read()
        return answer

    for data in in_order(ranges(job), get, 4):
        yield len(data) // ITEM


def smart_open_read(job: Job) -> Iterator[int]:
    import boto3
    import smart_open

    yield 0
    client = boto3.client("s3", endpoint_url=job["endpoint"])
    for name, _ in job["objects"]:
        with smart_open.open(f"s3://{job['bucket']}/{name}", "rb", transport_params={"client": client}) as file:
            while data := file.read(BLOCK):
                yield len(data) // ITEM


def s3torchconnector_read(job: Job) -> Iterator[int]:
    from s3torchconnector import S3ClientConfig, S3IterableDataset

    yield 0
    dataset = S3IterableDataset.from_objects(
        [f"s3://{job['bucket']}/{name}" for name, _ in job["objects"]],
        region="us-east-1",
        endpoint=job["endpoint"],
        s3client_config=S3ClientConfig(force_path_style=True),
    )
    for reader in dataset:
        while data := reader.read(BLOCK):
            yield len(data) // ITEM


def litdata_samples(job: Job) -> Iterator[int]:
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming import downloader

    yield 0
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it knows https only
    dataset = StreamingDataset(
        f"s3://{job['bucket']}/{job['litdata']}",
        cache_dir=job["scratch"],
        item_loader=TokensLoader(block_size=job["length"] + 1),
        shuffle=False,
        max_cache_size="20GB",
        storage_options={"endpoint_url": job["endpoint"], "region_name": "us-east-1"},
    )
    for sample in dataset:
        yield len(sample)


def mosaicml_samples(job: Job) -> Iterator[int]:
    os.environ["S3_ENDPOINT_URL"] = job["endpoint"]
    import mosaicml

    mosaicml.without_vision()
    from streaming import StreamingDataset

    yield 0
    dataset = StreamingDataset(
        remote=f"s3://{job['bucket']}/{job['mds']}", local=job["scratch"], shuffle=False, batch_size=1
    )
    for sample in dataset:
        yield len(sample["tokens"])


def bafogpt_samples(job: Job) -> Iterator[int]:
    """Every block verified by its hash, every sample of T + 1 tokens handed over."""
    from pathlib import Path

    from bafogpt.core.settings import Settings
    from bafogpt.storage.bucket import Bucket
    from bafogpt.storage.tokens import manifest
    from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream, prefetch

    yield 0
    settings = Settings(s3_endpoint=job["endpoint"])
    bucket = Bucket.open(f"s3://{job['bucket']}/{job['tokens']}", settings)
    cache = BlockCache(Path(job["cache"]), 100 << 30) if job.get("cache") else None
    samples = Samples(TokenStream(bucket, manifest.load(bucket), "train", cache=cache), job["length"])
    for _, sample in prefetch(samples, range(samples.count)):
        yield len(sample) - 1


READERS: dict[str, Callable[[Job], Iterator[int]]] = {
    "socket": socket_get,
    "obstore get_range": obstore_ranges,
    "obstore stream": obstore_stream,
    "boto3": boto3_ranges,
    "smart_open": smart_open_read,
    "s3torchconnector": s3torchconnector_read,
    "litdata": litdata_samples,
    "mosaicml-streaming": mosaicml_samples,
    "bafogpt": bafogpt_samples,
}


def measure(name: str, job: Job) -> dict[str, float]:
    """Read everything once. Seconds and CPU are counted from the end of the imports, the first sample from the
    process' start."""
    reading = READERS[name](job)
    next(reading)
    began, cpu_before = time.monotonic(), _cpu_s()
    tokens = next(reading)
    first = time.monotonic()
    for count in reading:
        tokens += count
    ended = time.monotonic()
    return {
        "tokens": tokens,
        "seconds": ended - began,
        "cpu_s": _cpu_s() - cpu_before,
        "first_sample_s": first - job["spawned"],
        "rss_mb": _peak_mb(),
    }


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mb() -> float:
    """The most memory that this program held; getrusage would count its parent's as well."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]))), flush=True)
    os._exit(0)  # some peers' threads do not end
