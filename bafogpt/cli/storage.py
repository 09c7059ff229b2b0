"""``bafogpt storage``: copy and inspect what buckets and the Hub hold, and run a local S3 server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import (
    DetachOption,
    PublicOption,
    SendDryRunOption,
    TransferFlags,
    YesOption,
)
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from bafogpt.folders.sync import SyncPlan, SyncReport
    from bafogpt.folders.uri import FolderLocation, PathBase
    from bafogpt.storage.embedded.files import Endpoint
    from bafogpt.storage.transfer.bandwidth import Bandwidth

app = App(help="Copy models, datasets and checkpoints to and from buckets and the Hub; run a local S3 server.")

UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="s3://, file:// or hf://ORG/NAME[@REV], or a path in the settings' bucket. Default: that bucket.",
    ),
]
SourceArgument = Annotated[str, typer.Argument(metavar="SRC", help="Folder to copy: a path, or a URL.")]
TargetArgument = Annotated[str, typer.Argument(metavar="DST", help="Folder to create or update: a path, or a URL.")]


@app.command()
def push(
    source: SourceArgument,
    target: TargetArgument,
    transfer: TransferFlags,
    out: Output,
    public: PublicOption = False,
    dry_run: SendDryRunOption = False,
) -> None:
    """Copy a folder to a bucket or to the Hub (hf://ORG/NAME, private unless --public).

    SRC is a folder on this machine or, if it does not exist here, in the settings' bucket; of runs/NAME/checkpoints the
    newest checkpoint is copied. Files that the target already has are not sent; repeat the command to resume after an
    interruption. HF_TOKEN is read from the environment.
    """
    _copy(source, target, "either", "bucket", public, dry_run, transfer.bandwidth, out)


@app.command()
def pull(
    source: SourceArgument,
    target: TargetArgument,
    transfer: TransferFlags,
    out: Output,
    dry_run: SendDryRunOption = False,
) -> None:
    """Copy a folder of a bucket or a Hub repository (hf://ORG/NAME[@REV]) to this machine, verified.

    DST may also be a URL; then nothing is stored on this machine. Repeat the command to resume after an interruption.
    """
    _copy(source, target, "bucket", "local", False, dry_run, transfer.bandwidth, out)


@app.command()
def ls(out: Output, url: UrlArgument = "") -> None:
    """List the objects below a URL: size, time, path."""
    bucket = _place(url).bucket()
    found = [{"path": info.path, "bytes": info.bytes, "modified": info.modified} for info in bucket.list()]
    if not found:
        out.say(f"nothing below {bucket.url}")
    out.rows(found, columns=["bytes", "modified", "path"], id="path")


@app.command()
def verify(out: Output, url: UrlArgument = "") -> None:
    """Verify the checksum of every model folder, dataset and checkpoint below a URL.

    Prints each damaged file. Exit code 1 if a file is damaged.
    """
    from bafogpt.core.errors import CorruptError
    from bafogpt.folders import gc as bucket_gc

    contents = bucket_gc.scan(_place(url).bucket())
    total = bucket_gc.bytes_to_verify(contents)
    with out.progress("verifying", total, unit="B") as advance:
        problems = bucket_gc.verify(contents, advance)
    for problem in problems:
        out.event({"problem": problem}, problem)
    if problems:
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise CorruptError(f"{contents.bucket.url}: {many}", "push or prepare it again, then verify it again")
    kinds = [folder.kind for folder in contents.folders]
    counts = {f"{kind}s": kinds.count(kind) for kind in ("model", "dataset")}
    counts["checkpoints"] = sum(len(each.manifests) for each in contents.folders if each.kind == "checkpoint")
    text = ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in counts.items() if count)
    record = {"url": contents.bucket.url, "bytes": total, **counts, "problems": 0}
    out.result(record, f"{contents.bucket.url}: {text}: {total / 1e6:,.1f} MB, verified", id="ok")


@app.command()
def du(
    out: Output,
    url: UrlArgument = "",
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="Number of folder levels to list.")] = 1,
) -> None:
    """Show the size of each folder below a URL."""
    from bafogpt.folders import gc as bucket_gc

    bucket = _place(url).bucket()
    rows: list[dict[str, Any]] = [
        {"folder": folder or ".", "objects": count, "bytes": size}
        for folder, count, size in bucket_gc.usage(bucket, depth)
    ]
    if not rows:
        out.say(f"nothing below {bucket.url}")
        return
    if not (out.json or out.quiet):
        rows.append({"folder": "total", **{name: sum(row[name] for row in rows) for name in ("objects", "bytes")}})
    for row in rows:
        row["mb"] = round(row["bytes"] / 1e6, 1)
    out.rows(rows, columns=["mb", "objects", "folder"], id="folder")


@app.command()
def gc(
    out: Output,
    url: UrlArgument = "",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Keep objects younger than AGE: 30m, 24h, 7d.")
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove unreferenced objects and incomplete uploads below a URL.

    Only folders of models, datasets and checkpoints are cleaned. Without --yes, the objects are listed, and removed
    after confirmation on a terminal.
    """
    import sys
    from datetime import UTC, datetime

    from bafogpt.folders import gc as bucket_gc

    place = _place(url)
    if place.hub is not None:
        raise UsageError("'storage gc' works on buckets, not on the Hub", "bafogpt storage gc s3://NAME")
    contents = bucket_gc.scan(place.bucket())
    found = bucket_gc.garbage(contents, _age(older_than), datetime.now(UTC))
    rows = [
        {"path": each.path, "bytes": each.bytes, "modified": each.modified, "reason": each.reason} for each in found
    ]
    out.rows(rows, columns=["bytes", "modified", "path", "reason"], id="path")
    size = sum(each.bytes for each in found)
    text = f"{len(found)} objects, {size / 1e6:,.1f} MB"
    if not found:
        out.say(f"nothing to remove below {contents.bucket.url}")
    elif dry_run or not (yes or (sys.stdin.isatty() and sys.stderr.isatty())):
        out.say(f"{text} would be removed; --yes removes them")
    elif out.confirm(f"remove {text}?", yes):
        bucket_gc.remove(contents.bucket, found)
        out.say(f"removed {text}")


@app.command()
def serve(
    out: Output,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port of the S3 server; 0 takes a free one.")
    ] = 0,
    detach: DetachOption = False,
) -> None:
    """Run an S3 server on this machine until Ctrl-C; with --detach, until 'bafogpt storage stop'."""
    import signal
    import threading
    from pathlib import Path

    from bafogpt.core import settings
    from bafogpt.storage.embedded import server

    home = Path(settings.load().home)
    if detach:
        _print_endpoint(out, home, server.detach(home, port=port))
        return
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with server.lease(home, port=port) as lease:
        _print_endpoint(out, home, lease.endpoint)
        out.say("Ctrl-C stops it")
        while not stopped.wait(timeout=1.0):
            if server.status(home) is None:
                out.say("the server has been stopped")
                return


@app.command()
def stop(out: Output) -> None:
    """Stop the S3 server of this machine, even if a run uses it."""
    from pathlib import Path

    from bafogpt.core import settings
    from bafogpt.storage.embedded import server

    home = Path(settings.load().home)
    was_running = server.stop(home)
    text = "stopped" if was_running else "no server was running"
    out.result({"stopped": was_running}, text)


def _place(url: str) -> FolderLocation:
    from bafogpt.core import settings
    from bafogpt.folders.uri import locate

    return locate(url, settings.load())


def _copy(
    source: str,
    target: str,
    source_base: PathBase,
    target_base: PathBase,
    public: bool,
    dry_run: bool,
    bandwidth: Bandwidth | None,
    out: Output,
) -> None:
    """What push and pull do; they differ in what a relative path is relative to."""
    from bafogpt.core import settings
    from bafogpt.folders import sync
    from bafogpt.folders.uri import locate

    config = settings.load()
    with out.progress("comparing", None, unit="B") as advance:
        plan = sync.prepare(locate(source, config, source_base), locate(target, config, target_base), progress=advance)
    if dry_run:
        _print_plan(out, plan)
        return
    with out.progress("copying", plan.bytes_to_send, unit="B") as advance:
        report = sync.execute(plan, public=public, progress=advance, bandwidth=bandwidth)
    _print_report(out, report)


def _print_plan(out: Output, plan: SyncPlan) -> None:
    """Print each file, and whether it would be sent."""
    rows = [
        {"action": "keep" if entry.name in plan.unchanged else "send", "bytes": entry.bytes, "name": entry.name}
        for entry in plan.listing.entries
    ]
    out.rows(rows, columns=["action", "bytes", "name"], id="name")
    count, size = len(plan.to_send), plan.bytes_to_send
    out.say(f"{count} of {len(rows)} files, {size / 1e6:,.1f} MB, would go to {plan.target.url}")


def _print_report(out: Output, report: SyncReport) -> None:
    from dataclasses import asdict

    rate = f" at {report.sent_bytes / report.seconds / 1e6:,.1f} MB/s" if report.sent_bytes and report.seconds else ""
    text = (
        f"{report.target}: {report.files} files, {report.bytes / 1e6:,.1f} MB; "
        f"sent {report.sent_files} ({report.sent_bytes / 1e6:,.1f} MB) in {report.seconds:.1f} s{rate}\n"
        f"verified by {report.verified_by}"
    )
    out.result(asdict(report), text, id=report.target)


def _age(text: str) -> timedelta:
    """Parse ``"24h"``."""
    from datetime import timedelta

    match = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if match is None:
        raise UsageError(f"--older-than {text}: not an age", "--older-than 24h, or 7d, 30m, 0s")
    return int(match[1]) * timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]: 1})


def _print_endpoint(out: Output, home: Path, endpoint: Endpoint) -> None:
    """Print where the server is and how to use it; the secret key stays in its file."""
    import sys

    from bafogpt.storage.embedded.files import ServerFolder

    credentials = ServerFolder(home).credentials
    record = {"endpoint": endpoint.url, "region": endpoint.region, "credentials": str(credentials)}
    out.result(record, f"S3 server at {endpoint.url}\nuse it:   set -a; . '{credentials}'; set +a", id=endpoint.url)
    sys.stdout.flush()  # a pipe is buffered
