"""Into the running pod, by the commands that a person types: a shell, copies, a port, live figures, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.rented import LONG, Rented

pytestmark = pytest.mark.slow


def fetch(url: str, timeout_s: float = 120.0, until: Callable[[bytes], Any] = bool) -> bytes:
    """What the address answers as soon as ``until`` accepts it, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), opener.open(url, timeout=10) as answer:
            body: bytes = answer.read()
            if until(body):
                return body
        time.sleep(0.3)
    raise AssertionError(f"{url} does not answer as it should")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_shell_copies_ports_figures_and_tensorboard_of_a_running_pod(rented: Rented, name: str, tmp_path: Path) -> None:
    rented.launch(name, "-d", **LONG)
    rented.until_step(name, 20)
    (pod,) = rented.pods(name)

    # ssh: words arrive as they are, the exit code comes back, and plain ssh finds the pod by the run's name
    assert rented.command("cloud", "ssh", name, "--", "echo", "two  words").stdout == "two  words\n"
    assert rented.command("cloud", "ssh", name, "--", "sh", "-c", "exit 7", code=7).stdout == ""
    assert rented.command("cloud", "ssh", name, "--", "hostname").stdout.strip() == pod["id"]
    assert rented.lab.run("ssh", "-o", "LogLevel=ERROR", name, "hostname").stdout.strip() == pod["id"]
    shown = rented.command("cloud", "ssh", name, "--node", "1", code=None)
    assert shown.returncode != 0 and "has no node 1" in shown.stderr
    assert "training" not in rented.command("cloud", "exec", name, "--", "nproc").stdout

    # cp: there and back
    (tmp_path / "there").write_text("sawubona")
    rented.command("cloud", "cp", str(tmp_path / "there"), f"{name}:there")
    rented.command("cloud", "cp", f"{name}:there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "sawubona"

    # port-forward: a server in the pod is one of this machine, on loopback
    serve = "cd /etc/bafogpt; setsid python3 -m http.server 8265 --bind 127.0.0.1 </dev/null >/dev/null 2>&1 & sleep 1"
    rented.command("cloud", "ssh", name, "--", "bash", "-c", serve)
    port = free_port()
    forward = rented.start("cloud", "port-forward", name, f"{port}:8265")
    assert json.loads(fetch(f"http://127.0.0.1:{port}/image.json"))["revision"]
    forward.terminate()
    forward.wait(30)

    # top: how far it is, at what speed and price, and how its machine is
    looked = json.loads(rented.command("cloud", "top", name, "--once", "--json").stdout)
    assert looked["state"] == "running" and looked["step"] >= 20 and looked["tokens_per_s"] > 0
    assert looked["machines"]
    screen = rented.command("cloud", "top", name, "--once").stdout
    for part in ("tokens/s", "4.56", "CPU", "memory", "disk"):
        assert part in screen, screen

    # tensorboard: the run's curve, live, on this machine
    port = free_port()
    board = rented.start("cloud", "tensorboard", name, "--port", str(port))
    scalars = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run={name}&tag=train/loss"
    points = json.loads(fetch(scalars, until=lambda body: body.startswith(b"[[")))
    later = json.loads(fetch(scalars, until=lambda body: json.loads(body)[-1][1] > points[-1][1]))
    steps = [step for _, step, _ in later]  # TensorBoard keeps a thousand of a longer curve
    assert steps == sorted(set(steps)) and len(steps) > 20
    board.terminate()
    board.wait(30)

    assert re.search(rf"{name} +runpod +running .* 4\.56", rented.command("cloud", "ls").stdout)
    rented.command("cloud", "down", name)
    assert not rented.pods(name)
