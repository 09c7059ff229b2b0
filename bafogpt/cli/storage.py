"""``bafogpt storage``: look into a bucket, and run this machine's own S3 server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.options import DetachOption, JsonOption, QuietOption
from bafogpt.cli.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from bafogpt.storage.embedded import Endpoint

app = typer.Typer(help="The bucket, and this machine's own S3 server.")

PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the S3 server; 0 takes a free one.")]
UrlArgument = Annotated[
    str, typer.Argument(metavar="[URL]", help="A bucket's URL, or a path below the bucket of the settings.")
]


@app.command()
def serve(
    port: PortOption = 0, detach: DetachOption = False, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Run the S3 server until Ctrl-C; with --detach, until 'bafogpt storage stop'."""
    import signal
    import threading
    from pathlib import Path

    from bafogpt.core import settings
    from bafogpt.storage import server

    out = Output.of(json=json, quiet=quiet)
    home = Path(settings.load().home)
    if detach:
        _report(out, home, server.keep(home, port=port))
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
    from bafogpt.storage import server

    home = Path(settings.load().home)
    was_running = server.stop(home)
    text = "stopped" if was_running else "no server was running"
    Output.of(json=json, quiet=quiet).result({"stopped": was_running}, text)


@app.command()
def ls(url: UrlArgument = "", json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the objects below a URL: size, time, name."""
    from bafogpt.core import settings
    from bafogpt.storage.bucket import Bucket

    out = Output.of(json=json, quiet=quiet)
    config = settings.load()
    if "://" in url:
        bucket = Bucket.open(url, config)
    else:
        bucket = Bucket.open(config.bucket, config)
        bucket = bucket.child(url.rstrip("/")) if url.rstrip("/") else bucket
    found = [{"path": info.path, "bytes": info.bytes, "modified": info.modified} for info in bucket.list()]
    if not found:
        out.say(f"nothing below {bucket.url}")
    out.rows(found, columns=["bytes", "modified", "path"], id="path")


def _report(out: Output, home: Path, endpoint: Endpoint) -> None:
    """Say where the server is and how to use it; the secret key stays in its file."""
    import sys

    from bafogpt.storage.embedded import Folder

    credentials = Folder(home).credentials
    record = {"endpoint": endpoint.url, "region": endpoint.region, "credentials": str(credentials)}
    out.result(record, f"S3 server at {endpoint.url}\nuse it:   set -a; . '{credentials}'; set +a", id=endpoint.url)
    sys.stdout.flush()  # whoever reads this through a pipe reads it now
