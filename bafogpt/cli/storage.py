"""``bafogpt storage``: models to and from buckets and the Hub, what a bucket holds, this machine's own S3 server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.options import BandwidthOption, DetachOption, JsonOption, QuietOption, YesOption
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from bafogpt.storage.embedded.files import Endpoint
    from bafogpt.storage.folders.sync import SyncPlan, SyncReport
    from bafogpt.storage.folders.uri import FolderLocation, PathBase

app = typer.Typer(help="Models, datasets and checkpoints in buckets and on the Hub; this machine's own S3 server.")

PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the S3 server; 0 takes a free one.")]
UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="[URL]", help="s3://, file:// or hf://ORG/NAME[@REV], or a path below the settings' bucket."
    ),
]
SourceArgument = Annotated[str, typer.Argument(metavar="SRC", help="The folder to copy: a path, or a URL.")]
TargetArgument = Annotated[str, typer.Argument(metavar="DST", help="The folder it becomes: a path, or a URL.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")]
PublicOption = Annotated[bool, typer.Option("--public", help="The repository on the Hub may be seen by everybody.")]
OlderOption = Annotated[str, typer.Option("--older-than", metavar="AGE", help="Spare what is younger: 30m, 24h, 7d.")]
DepthOption = Annotated[int, typer.Option("--depth", help="Levels of folders to tell apart.")]


@app.command()
def push(
    source: SourceArgument,
    target: TargetArgument,
    public: PublicOption = False,
    dry_run: DryRunOption = False,
    max_bandwidth: BandwidthOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a folder to a bucket or to the Hub (hf://ORG/NAME, private unless --public).

    SRC is a folder here or, where there is none of that name, below the settings' bucket: of runs/NAME/checkpoints the
    newest checkpoint is taken. What is there already is not sent again, and the same command
    given again after an interruption goes on. HF_TOKEN is read from the environment.
    """
    _copy(source, target, "either", "bucket", public, dry_run, max_bandwidth, Output.of(json=json, quiet=quiet))


@app.command()
def pull(
    source: SourceArgument,
    target: TargetArgument,
    dry_run: DryRunOption = False,
    max_bandwidth: BandwidthOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a folder of a bucket or a repository of the Hub (hf://ORG/NAME[@REV]) to this machine, verified.

    DST may also be a URL: then nothing is kept here on the way. The same command given again after an interruption
    goes on.
    """
    _copy(source, target, "bucket", "local", False, dry_run, max_bandwidth, Output.of(json=json, quiet=quiet))


@app.command()
def ls(url: UrlArgument = "", json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the objects below a URL: size, time, name."""
    out = Output.of(json=json, quiet=quiet)
    bucket = _place(url).bucket()
    found = [{"path": info.path, "bytes": info.bytes, "modified": info.modified} for info in bucket.list()]
    if not found:
        out.say(f"nothing below {bucket.url}")
    out.rows(found, columns=["bytes", "modified", "path"], id="path")


@app.command()
def verify(url: UrlArgument = "", json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Read every byte below a URL that a manifest speaks for, and name what is not as it was written.

    Model folders, datasets and checkpoints; exit code 1 when anything is wrong.
    """
    from bafogpt.core.errors import CorruptError
    from bafogpt.storage.folders import gc as bucket_gc

    out = Output.of(json=json, quiet=quiet)
    contents = bucket_gc.scan(_place(url).bucket())
    total = bucket_gc.bytes_to_verify(contents)
    with out.progress("verifying", total, unit="B") as advance:
        problems = bucket_gc.verify(contents, advance)
    for problem in problems:
        out.event({"problem": problem}, problem)
    if problems:
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise CorruptError(f"{contents.bucket.url}: {many}", "push or prepare it anew, then verify it again")
    kinds = [folder.kind for folder in contents.folders]
    counts = {f"{kind}s": kinds.count(kind) for kind in ("model", "dataset")}
    counts["checkpoints"] = sum(len(each.manifests) for each in contents.folders if each.kind == "checkpoint")
    text = ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in counts.items() if count)
    record = {"url": contents.bucket.url, "bytes": total, **counts, "problems": 0}
    out.result(record, f"{contents.bucket.url}: {text}: {total / 1e6:,.1f} MB, every byte is right", id="ok")


@app.command()
def du(url: UrlArgument = "", depth: DepthOption = 1, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """How much each folder below a URL holds."""
    from bafogpt.storage.folders import gc as bucket_gc

    out = Output.of(json=json, quiet=quiet)
    bucket = _place(url).bucket()
    rows: list[dict[str, Any]] = [
        {"folder": folder or ".", "objects": count, "bytes": size}
        for folder, count, size in bucket_gc.usage(bucket, depth)
    ]
    if not rows:
        out.say(f"nothing below {bucket.url}")
        return
    if not (json or quiet):
        rows.append({"folder": "total", **{name: sum(row[name] for row in rows) for name in ("objects", "bytes")}})
    for row in rows:
        row["mb"] = round(row["bytes"] / 1e6, 1)
    out.rows(rows, columns=["mb", "objects", "folder"], id="folder")


@app.command()
def gc(
    url: UrlArgument = "",
    older_than: OlderOption = "24h",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove what no manifest names any more below a URL, and uploads that were never completed.

    Only in folders of models, datasets and checkpoints. Without --yes it shows what would go, and asks on a terminal.
    """
    import sys
    from datetime import UTC, datetime

    from bafogpt.storage.folders import gc as bucket_gc

    out = Output.of(json=json, quiet=quiet)
    place = _place(url)
    if place.hub is not None:
        raise UsageError("the Hub looks after its own storage", "bafogpt storage gc s3://NAME")
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
    port: PortOption = 0, detach: DetachOption = False, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Run the S3 server until Ctrl-C; with --detach, until 'bafogpt storage stop'."""
    import signal
    import threading
    from pathlib import Path

    from bafogpt.core import settings
    from bafogpt.storage.embedded import server

    out = Output.of(json=json, quiet=quiet)
    home = Path(settings.load().home)
    if detach:
        _report(out, home, server.detach(home, port=port))
        return
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with server.lease(home, port=port) as lease:
        _report(out, home, lease.endpoint)
        out.say("Ctrl-C stops it")
        while not stopped.wait(timeout=1.0):
            if server.status(home) is None:
                out.say("the server has been stopped")
                return


@app.command()
def stop(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Stop this machine's S3 server, whoever uses it."""
    from pathlib import Path

    from bafogpt.core import settings
    from bafogpt.storage.embedded import server

    home = Path(settings.load().home)
    was_running = server.stop(home)
    text = "stopped" if was_running else "no server was running"
    Output.of(json=json, quiet=quiet).result({"stopped": was_running}, text)


def _place(url: str) -> FolderLocation:
    from bafogpt.core import settings
    from bafogpt.storage.folders.uri import locate

    return locate(url, settings.load())


def _copy(
    source: str,
    target: str,
    source_base: PathBase,
    target_base: PathBase,
    public: bool,
    dry_run: bool,
    max_bandwidth: str | None,
    out: Output,
) -> None:
    """What push and pull do; they differ in what a relative path is relative to."""
    from bafogpt.core import settings
    from bafogpt.storage.folders import sync
    from bafogpt.storage.folders.uri import locate
    from bafogpt.storage.transfer import bandwidth as rates

    config = settings.load()
    bandwidth = rates.Bandwidth(rates.parse(max_bandwidth)) if max_bandwidth else None
    with out.progress("comparing", None, unit="B") as advance:
        plan = sync.prepare(locate(source, config, source_base), locate(target, config, target_base), progress=advance)
    if dry_run:
        _show(out, plan)
        return
    with out.progress("copying", plan.bytes_to_send, unit="B") as advance:
        report = sync.execute(plan, public=public, progress=advance, bandwidth=bandwidth)
    _say(out, report)


def _show(out: Output, plan: SyncPlan) -> None:
    """A dry run: each file, and whether it would be sent."""
    rows = [
        {"action": "keep" if entry.name in plan.unchanged else "send", "bytes": entry.bytes, "name": entry.name}
        for entry in plan.listing.entries
    ]
    out.rows(rows, columns=["action", "bytes", "name"], id="name")
    count, size = len(plan.to_send), plan.bytes_to_send
    out.say(f"{count} of {len(rows)} files, {size / 1e6:,.1f} MB, would go to {plan.target.url}")


def _say(out: Output, report: SyncReport) -> None:
    from dataclasses import asdict

    rate = f" at {report.sent_bytes / report.seconds / 1e6:,.1f} MB/s" if report.sent_bytes and report.seconds else ""
    text = (
        f"{report.target}: {report.files} files, {report.bytes / 1e6:,.1f} MB; "
        f"sent {report.sent_files} ({report.sent_bytes / 1e6:,.1f} MB) in {report.seconds:.1f} s{rate}\n"
        f"verified by {report.verified_by}"
    )
    out.result(asdict(report), text, id=report.target)


def _age(text: str) -> timedelta:
    """``"24h"`` as a span of time."""
    from datetime import timedelta

    match = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if match is None:
        raise UsageError(f"--older-than {text}: not an age", "--older-than 24h, or 7d, 30m, 0s")
    return int(match[1]) * timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]: 1})


def _report(out: Output, home: Path, endpoint: Endpoint) -> None:
    """Say where the server is and how to use it; the secret key stays in its file."""
    import sys

    from bafogpt.storage.embedded.files import ServerFolder

    credentials = ServerFolder(home).credentials
    record = {"endpoint": endpoint.url, "region": endpoint.region, "credentials": str(credentials)}
    out.result(record, f"S3 server at {endpoint.url}\nuse it:   set -a; . '{credentials}'; set +a", id=endpoint.url)
    sys.stdout.flush()  # whoever reads this through a pipe reads it now
