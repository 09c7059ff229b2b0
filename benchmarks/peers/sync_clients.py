"""One client moves one checkpoint folder once; ``sync.py`` starts a fresh process of this for every run.

    python sync_clients.py CLIENT JSON         prints {"seconds", "cpu_s", "rss_mb", "moved"} as JSON

A library's time begins when it is imported and connected, as it is in a process that lives for hours; a program's,
when it is started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Act = Callable[[], object]


def main() -> None:
    job = json.loads(sys.argv[2])
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(variable, None)
    act = CLIENTS[sys.argv[1]](job)
    cpu, start = _cpu(), time.perf_counter()
    moved = act()
    seconds, used = time.perf_counter() - start, _cpu() - cpu
    peak = max(_own_peak_kb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps({"seconds": seconds, "cpu_s": used, "rss_mb": peak / 1024, "moved": moved or 0}))


def _own_peak_kb() -> int:
    """Of this process alone; ``ru_maxrss`` remembers the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _cpu() -> float:
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


def _files(job: Job) -> list[Path]:
    return sorted(Path(job["folder"]).iterdir())


def _store(job: Job, signed: bool = True) -> Any:
    """Unless told not to, obstore signs what it sends: a SHA-256 of every part."""
    from obstore.store import S3Store

    options: Any = {"client_options": {"allow_http": True, "timeout": "600s"}, "unsigned_payload": not signed}
    store = S3Store(job["bucket"], endpoint=job["endpoint"], region="us-east-1", **options)
    import obstore

    obstore.put(store, f"{job['prefix']}-warm", b"x")
    return store


def obstore_put(job: Job, workers: int, part: int, in_flight: int, signed: bool = True) -> Act:
    import obstore

    store = _store(job, signed)

    def one(file: Path) -> None:
        obstore.put(store, f"{job['prefix']}/{file.name}", file, chunk_size=part, max_concurrency=in_flight)

    def act() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, _files(job)))

    return act


def obstore_get(job: Job) -> Act:
    import obstore

    store = _store(job)

    def one(name: str) -> None:
        with (Path(job["into"]) / name.rpartition("/")[2]).open("wb") as file:
            for chunk in obstore.get(store, name).stream(min_chunk_size=1 << 20):
                file.write(chunk)

    def act() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, job["objects"]))

    return act


def _boto3(job: Job, tuned: bool) -> tuple[Any, Any]:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    plain = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(s3={"addressing_style": "path"}, max_pool_connections=20, **(plain if tuned else {}))
    client = boto3.client("s3", endpoint_url=job["endpoint"], config=config)
    client.put_object(Bucket=job["bucket"], Key=f"{job['prefix']}-warm", Body=b"x")
    options = {"multipart_chunksize": 32 << 20, "max_concurrency": 4} if tuned else {}
    return client, TransferConfig(**options)


def boto3_upload(job: Job, tuned: bool) -> Act:
    client, config = _boto3(job, tuned)

    def one(file: Path) -> None:
        client.upload_file(str(file), job["bucket"], f"{job['prefix']}/{file.name}", Config=config)

    def act() -> None:
        with ThreadPoolExecutor(4 if tuned else 1) as pool:
            list(pool.map(one, _files(job)))

    return act


def boto3_download(job: Job) -> Act:
    client, config = _boto3(job, tuned=True)

    def one(name: str) -> None:
        client.download_file(job["bucket"], name, str(Path(job["into"]) / name.rpartition("/")[2]), Config=config)

    def act() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, job["objects"]))

    return act


def program(job: Job, *words: str) -> Act:
    def act() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | _rclone(job))

    return act


def _rclone(job: Job) -> dict[str, str]:
    """The remote ``bench:`` by environment variables."""
    values = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": job["endpoint"]}
    return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in values.items()}


def s5cmd(job: Job, *, up: bool) -> Act:
    there = f"s3://{job['bucket']}/{job['prefix']}/"
    where = [f"{job['folder']}/", there] if up else [f"{there}*", f"{job['into']}/"]
    return program(job, job["programs"]["s5cmd"], "--endpoint-url", job["endpoint"], "cp", *where)


def aws_sync(job: Job) -> Act:
    there = f"s3://{job['bucket']}/{job['prefix']}/"
    words = ("--endpoint-url", job["endpoint"], "s3", "sync", "--only-show-errors", job["folder"], there)
    return program(job, job["programs"]["aws"], *words)


def rclone(job: Job) -> Act:
    there = f"bench:{job['bucket']}/{job['prefix']}"
    words = ("--transfers", "4", "--s3-no-check-bucket", "--s3-upload-concurrency", "4")
    return program(job, job["programs"]["rclone"], "copy", *words, job["folder"], there)


def _checkpoints(job: Job) -> Any:
    from bafogpt.core.errors import NotFoundError
    from bafogpt.core.settings import Settings
    from bafogpt.storage.bucket import Bucket
    from bafogpt.storage.checkpoints.store import CheckpointStore
    from bafogpt.storage.transfer import upload

    bucket = Bucket.open(f"s3://{job['bucket']}/{job['prefix']}", Settings(s3_endpoint=job["endpoint"]))
    connection = bucket.address("")[0]
    if job["null"]:  # it neither verifies nor keeps anything: what it says is believed, as its other clients do
        connection.verifies_checksums = True
        upload._checked = lambda _, __, sent, **___: dataclasses.replace(sent, etag=f"{sent.bytes:x}")
    connection.bulk_client.list_multipart_uploads(Bucket=job["bucket"], Prefix=job["prefix"])
    bucket.exists("warm")
    with contextlib.suppress(NotFoundError):
        bucket.get("warm")
    return CheckpointStore(bucket)


def checkpoint_upload(job: Job, step: int) -> Act:
    """Step 1 is new; step 2 is the same again, or with one file changed, as ``sync.py`` has left the folder."""
    from bafogpt.storage import transfer

    store = _checkpoints(job)
    sent: list[int] = []
    send = transfer.send

    def counted(*arguments: Any, **options: Any) -> transfer.Sent:
        result = send(*arguments, **options)
        sent.append(result.bytes)
        return result

    transfer.send = counted

    def act() -> int:
        store.upload(Path(job["folder"]), step=step, samples=step, upload_id="bench", metadata={})
        return sum(sent)

    return act


def checkpoint_fetch(job: Job) -> Act:
    store = _checkpoints(job)

    def act() -> None:
        found = store.fetch_newest(Path(job["into"]))
        assert found is not None

    return act


CLIENTS: dict[str, Callable[[Job], Act]] = {
    "obstore put side by side": lambda job: obstore_put(job, 4, 8 << 20, 2),
    "obstore put unsigned": lambda job: obstore_put(job, 4, 8 << 20, 2, signed=False),
    "obstore put in turn": lambda job: obstore_put(job, 1, 32 << 20, 4),
    "obstore get": obstore_get,
    "boto3 upload": lambda job: boto3_upload(job, tuned=False),
    "boto3 upload tuned": lambda job: boto3_upload(job, tuned=True),
    "boto3 download": boto3_download,
    "s5cmd up": lambda job: s5cmd(job, up=True),
    "s5cmd down": lambda job: s5cmd(job, up=False),
    "aws s3 sync": aws_sync,
    "rclone": rclone,
    "checkpoint first": lambda job: checkpoint_upload(job, 1),
    "checkpoint again": lambda job: checkpoint_upload(job, 2),
    "checkpoint fetch": checkpoint_fetch,
}


if __name__ == "__main__":
    main()
