"""How fast tokens come out of a bucket: the project's reader beside what else there is.

    ./scripts/bench stream [--mb 1000] [--repeat 3] [--servers null,seaweedfs] [--only NAME,…] [--json FILE]

Every reader reads the same tokens in order, in a fresh process, from the same server on this machine: one that does
nothing (so the client is what is measured) and SeaweedFS. A row's figures are medians of its runs; its ratios are
medians of the ratios of each turn, in which all rows ran one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import environment

from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket, boto3_client
from bafogpt.storage.embedded import server
from bafogpt.storage.tokens.manifest import TokenizerInfo
from bafogpt.storage.tokens.writer import TokenWriter

HERE = Path(__file__).parent
LENGTH = 2048
VOCABULARY = 256_000
BUCKET = "bench"
TIMEOUT_S = 300
RAW = "obstore get_range, 2 × 8 MiB"


@dataclass(frozen=True)
class Row:
    """A line of the table: which reader, in whose environment, and what it hands over."""

    title: str
    reader: str
    gives: str
    package: str = ""
    """Of the peers' environment; empty for the project's own."""
    cache: str = ""
    """``new`` or ``kept``: a cache folder, empty or as the row before left it."""


ROWS = (
    Row("ceiling: a socket, 2 connections", "socket", "bytes"),
    Row(RAW, "obstore get_range", "bytes"),
    Row("obstore get().stream()", "obstore stream", "bytes"),
    Row("boto3, 4 threads × 8 MiB", "boto3", "bytes"),
    Row("smart_open", "smart_open", "bytes"),
    Row("s3torchconnector", "s3torchconnector", "bytes", package="s3torchconnector"),
    Row("litdata", "litdata", "samples", package="litdata"),
    Row("mosaicml-streaming", "mosaicml-streaming", "samples", package="mosaicml-streaming"),
    Row("bafogpt", "bafogpt", "samples, hashed"),
    Row("bafogpt, filling its cache", "bafogpt", "samples, hashed", cache="new"),
    Row("bafogpt, from its cache", "bafogpt", "samples, hashed", cache="kept"),
)


def main() -> int:
    options = _options()
    environment.ensure()
    with tempfile.TemporaryDirectory(prefix="bafogpt-bench-") as name:
        work = Path(name)
        objects = _write_datasets(work / "served" / BUCKET, work, options.mb)
        results = []
        for which in options.servers.split(","):
            with SERVERS[which](work) as (endpoint, keys):
                results += _measure_all(which, endpoint, keys, objects, work, options)
                print("\n" + _table(which, [each for each in results if each["server"] == which]))
    report = {"machine": _machine(), "mb": options.mb, "tokens_per_sample": LENGTH, "rows": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench stream", description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=int, default=1000, help="how much is read (default: 1000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--servers", default="null,seaweedfs", help="null, seaweedfs or both")
    parser.add_argument("--only", default="", help="rows whose title holds one of these words")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    return parser.parse_args()


def _write_datasets(folder: Path, work: Path, megabytes: int) -> list[tuple[str, int]]:
    """The same tokens three times, in three formats; (object, bytes) of the plain shards."""
    _say(f"writing {megabytes} MB of tokens in three formats")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, megabytes * 1_000_000 // 4, dtype=np.uint32)
    np.save(work / "tokens.npy", tokens)
    bucket = Bucket.open(f"file://{folder}/tokens", Settings())
    bucket.create()
    with TokenWriter(bucket, dtype="uint32", workdir=work) as writer:
        for start in range(0, len(tokens), 100_000):
            writer.add("train", "all", "random", tokens[start : start + 100_000])
        info = TokenizerInfo("none", "blake3:00", eos_id=1, bos_id=None)
        manifest = writer.finish(tokenizer=info, vocab_size=VOCABULARY, sources=[])
    for peer, package in (("litdata", "litdata"), ("mds", "mosaicml-streaming")):
        if package not in environment.problems():
            script = HERE / "peers" / "stream_datasets.py"
            command = [environment.python(), script, peer, folder / peer, work / "tokens.npy", str(LENGTH)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                _say(f"{package}'s dataset is not written: {done.stderr.strip().splitlines()[-1]}")
    return [(f"tokens/{shard.object}", shard.tokens * 4) for shard in manifest.splits["train"].shards]


@contextlib.contextmanager
def null_server(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The server that does nothing: its URL, and the variables of a client."""
    command = [sys.executable, HERE / "null_server.py", work / "served"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield (
            process.stdout.readline().strip(),
            {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"},
        )
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def seaweedfs(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The embedded server, with the datasets uploaded."""
    home = work / "home"
    with server.lease(home) as lease:
        target = Bucket.open(f"s3://{BUCKET}", Settings(home=str(home), bucket=f"s3://{BUCKET}"))
        target.create()
        _say("uploading to SeaweedFS")
        folder = work / "served" / BUCKET
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target.upload(str(path.relative_to(folder)), path)
        yield lease.endpoint.url, lease.endpoint.environment()


SERVERS = {"null": null_server, "seaweedfs": seaweedfs}


def _measure_all(
    which: str, endpoint: str, keys: dict[str, str], objects: list[tuple[str, int]], work: Path, options: Any
) -> list[dict[str, Any]]:
    """Each row's medians, with their ratios to the raw client's."""
    os.environ.update(keys)
    client = boto3_client(Settings(s3_endpoint=endpoint))
    urls = [client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": name}) for name, _ in objects]
    job = {"endpoint": endpoint, "bucket": BUCKET, "objects": objects, "urls": urls, "length": LENGTH}
    job |= {"tokens": "tokens", "litdata": "litdata", "mds": "mds"}
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(options.repeat):  # in turns, so that a busy minute weighs on all of them
        for row in ROWS:
            if options.only and row.title != RAW and not any(word in row.title for word in options.only.split(",")):
                continue
            _say(f"{which} {turn + 1}/{options.repeat}: {row.title}")
            runs.setdefault(row.title, []).append(_run(row, job, keys, work))
    rows = []
    for row in ROWS:
        good = [_figures(run) for run in runs.get(row.title, []) if "error" not in run]
        if good:
            middle = {name: statistics.median(each[name] for each in good) for name in good[0]}
            rows.append({"server": which, "title": row.title, "gives": row.gives, "runs": len(good), **middle})
        elif row.title in runs:
            rows.append({"server": which, "title": row.title, "gives": row.gives, **runs[row.title][0]})
    for row in rows:
        pairs = [
            (_figures(run), _figures(raw))
            for run, raw in zip(runs[row["title"]], runs[RAW], strict=True)
            if "error" not in run and "error" not in raw
        ]
        if pairs:
            row["speed_ratio"] = statistics.median(run["mb_per_s"] / raw["mb_per_s"] for run, raw in pairs)
            row["cpu_ratio"] = statistics.median(run["cpu_s_per_gb"] / raw["cpu_s_per_gb"] for run, raw in pairs)
    return rows


def _run(row: Row, job: dict[str, Any], keys: dict[str, str], work: Path) -> dict[str, Any]:
    """One reader in a process of its own; ``error`` in place of figures when it does not work."""
    if row.package in environment.problems():
        return {"error": f"not installed: {environment.problems()[row.package]}"}
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    job = {**job, "scratch": str(scratch)}
    if row.cache:
        job["cache"] = str(work / "cache")
        if row.cache == "new":
            shutil.rmtree(work / "cache", ignore_errors=True)
    python = environment.python() if row.package else sys.executable
    command = [str(python), str(HERE / "peers" / "stream_readers.py"), row.reader]
    job["spawned"] = time.monotonic()
    try:
        done = subprocess.run(
            [*command, json.dumps(job)],
            env=os.environ | keys | {"AWS_ENDPOINT_URL": job["endpoint"]},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not end in {TIMEOUT_S} s"}
    if done.returncode:
        named = re.findall(r"^\w+(?:Error|Exception|Exit)\b.*", done.stderr, re.MULTILINE)
        return {"error": (named or [f"exit code {done.returncode}"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _figures(run: dict[str, Any]) -> dict[str, float]:
    gigabytes = run["tokens"] * 4 / 1e9
    return {
        "mb_per_s": gigabytes * 1e3 / run["seconds"],
        "tokens_per_s": run["tokens"] / run["seconds"],
        "cpu_s_per_gb": run["cpu_s"] / gigabytes,
        "first_sample_s": run["first_sample_s"],
        "rss_mb": run["rss_mb"],
        "gb": gigabytes,
    }


def _table(which: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| from {which} | gives | MB/s | M tokens/s | CPU s/GB | first, s | peak MB | speed × raw | CPU × raw |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['title']} | {row['error']} | | | | | | | |")
            continue
        lines.append(
            f"| {row['title']} | {row['gives']} | {row['mb_per_s']:.0f} | {row['tokens_per_s'] / 1e6:.0f} "
            f"| {row['cpu_s_per_gb']:.2f} | {row['first_sample_s']:.2f} | {row['rss_mb']:.0f} "
            f"| {row.get('speed_ratio', 0):.2f} | {row.get('cpu_ratio', 0):.2f} |"
        )
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
