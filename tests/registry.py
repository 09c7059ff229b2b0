"""A real container registry on the loopback address."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APT = ("apt-get", "-o", "DPkg::Lock::Timeout=900", "install", "-y", "-qq", "--no-install-recommends")


def installed() -> bool:
    """Whether ``docker-registry`` can be run; on Debian root installs it."""
    if shutil.which("docker-registry") is None and os.getuid() == 0 and shutil.which("apt-get"):
        subprocess.run([*APT, "docker-registry"], capture_output=True)
    return shutil.which("docker-registry") is not None


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """``127.0.0.1:PORT`` of an empty registry with its files in ``folder``."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    config = folder / "config.yml"
    config.write_text(
        json.dumps({"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": {"addr": address}})
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["docker-registry", "serve", config], stdout=quiet, stderr=quiet) as server:
        try:
            while True:
                assert server.poll() is None, "the registry ended"
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield address
        finally:
            server.kill()
