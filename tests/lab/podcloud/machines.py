"""Pods as podman containers, and the doors between a pod's loopback and this machine's.

A pod has a network of its own by slirp4netns: it reaches out, and nothing is written into this machine's own network
(no bridge, no firewall rule, no sysctl) that could be left behind. What must come in, ssh and the task's ports, and
the services of this machine that a pod may use come through doors: a door is a socket that was made while its thread
was in one network namespace, and is served by this process, which is in the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.podcloud.graphql import GraphQLError

LABEL = "bafogpt.lab.pod"
CLONE_NEWNET = 0x40000000
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Machine:
    """A container as podman sees it."""

    pod: dict[str, Any]
    running: bool
    process: int


def podman(*words: str, check: bool = True) -> str:
    """Run podman; CONTAINERS_CONF and CONTAINERS_STORAGE_CONF say which."""
    done = subprocess.run(["podman", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if check and done.returncode:
        raise GraphQLError((done.stderr or done.stdout).strip()[-300:])
    return done.stdout


def rent(pod: dict[str, Any], options: Sequence[str], command: Sequence[str]) -> None:
    """Start the container of a pod; the image must be there already."""
    name = container(pod["id"])
    words = [
        "run",
        "-d",
        "--pull=never",
        "--name",
        name,
        "--hostname",
        pod["id"],
        "--label",
        f"{LABEL}={json.dumps(pod)}",
    ]
    try:
        podman(*words, "--network=slirp4netns", *options, pod["imageName"], *command)
    except GraphQLError:
        end(pod["id"])
        raise


def everyone() -> list[Machine]:
    """Every pod that has a container."""
    ids = podman("ps", "-aq", "--filter", f"label={LABEL}").split()
    found = json.loads(podman("inspect", *ids, check=False) or "[]") if ids else []
    return [
        Machine(json.loads(box["Config"]["Labels"][LABEL]), box["State"]["Running"], box["State"]["Pid"])
        for box in found
    ]


def container(pod_id: str) -> str:
    """The name of a pod's container."""
    return f"bafogpt-lab-{pod_id}"


def end(pod_id: str) -> None:
    """Remove a container, running or not."""
    podman("kill", container(pod_id), check=False)  # `rm` alone waits ten seconds for a shell that is process 1
    podman("rm", "-f", "-v", container(pod_id), check=False)


def inside(process: int, make: Callable[[], socket.socket]) -> socket.socket:
    """The socket that ``make`` returns when it is called in the network namespace of ``process``."""
    result: list[socket.socket | OSError] = []

    def enter() -> None:  # setns moves this thread only, and a socket stays where it was made
        try:
            with open(f"/proc/{process}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            result.append(make())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


class Door(socketserver.ThreadingTCPServer):
    """Connections to ``listener`` are carried to what ``connect`` connects to."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        super().__init__((LOOPBACK, 0), _Carrier, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.connect = connect
        self.port: int = listener.getsockname()[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def close(self) -> None:
        """Accept no more; connections end with their pod."""
        self.shutdown()
        self.server_close()


class _Carrier(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Door)
        try:
            there = self.server.connect()
        except OSError:
            return
        with there:
            back = threading.Thread(target=_carry, args=(there, self.request), daemon=True)
            back.start()
            _carry(self.request, there)
            back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def door_into(process: int, port: int) -> Door:
    """A free port of this machine that leads to a pod's own."""

    def connect() -> socket.socket:
        return inside(process, lambda: socket.create_connection((LOOPBACK, port), timeout=10))

    return Door(socket.create_server((LOOPBACK, 0)), lambda: _without_timeout(connect()))


def door_out(process: int, port: int) -> Door:
    """A port of this machine's loopback, at the same number of a pod's loopback."""
    listener = inside(process, lambda: socket.create_server((LOOPBACK, port)))
    return Door(listener, lambda: _without_timeout(socket.create_connection((LOOPBACK, port), timeout=10)))


def _without_timeout(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    return connection


def exhaust_memory(pod_id: str) -> None:
    """End the pod's largest process as the kernel does when memory is short: with SIGKILL."""
    listing = podman("top", container(pod_id), "hpid", "rss", "comm").splitlines()[1:]
    split = (line.split() for line in listing)
    rows = sorted((int(rss), int(pid)) for pid, rss, *_ in split if (pid + rss).isdigit())  # "?": it has just ended
    for _, pid in rows[::-1]:
        if pid > 1 and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            return
