"""The pod cloud over HTTP: ``python -m tests.lab.podcloud.server PORT [what is added to "podman run"]``.

Its one key is read from ``PODCLOUD_KEY``: other users see a command line.

``POST /graphql`` is RunPod's. ``/_control`` answers on this machine only; POST one JSON object:

    {"fault": {"kind": "capacity", "op": "podFindAndDeployOnDemand", "times": 3}}    see ``faults``
    {"preempt": "POD"}                       the cloud takes a pod back, by its id
    {"oom": "POD"}                           its largest process is killed, as when memory is short
    {"reach": 8333}                          pods reach this port of this machine's loopback at their own

and GET it for the pods, the faults to come and the log of all requests.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import sys
from typing import Any

from tests.lab.podcloud import machines
from tests.lab.podcloud.cloud import Cloud
from tests.lab.podcloud.faults import KINDS, Fault
from tests.lab.podcloud.graphql import GraphQLError

KEY_VARIABLE = "PODCLOUD_KEY"


class Server(http.server.ThreadingHTTPServer):
    """The API at one port of the loopback address, for one key."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, key: str, options: list[str]) -> None:
        super().__init__((machines.LOOPBACK, port), Handler)
        self.cloud = Cloud(self.server_address[1], options)
        self.key = key


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/_control":
            self._send(200, self._state())
        else:
            self._send(404, "not found")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.path == "/_control":
                self._send(200, self._control(json.loads(raw)))
            elif self.path != "/graphql":
                self._send(404, "not found")
            elif self.headers.get("Authorization") != f"Bearer {self.server.key}":
                self._send(*KINDS["401"])
            else:
                self._send(*self.server.cloud.answer(json.loads(raw)["query"]))
        except GraphQLError as error:
            self._send(200, {"errors": [{"message": str(error)}], "data": None})
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, {"errors": [{"message": f"{type(error).__name__}: {error}"}]})

    def _control(self, wish: dict[str, Any]) -> dict[str, Any]:
        cloud = self.server.cloud
        if "fault" in wish:
            cloud.faults.append(Fault(**wish["fault"]))
        elif "preempt" in wish:
            return {"preempted": cloud.preempt(wish["preempt"])}
        elif "oom" in wish:
            machines.exhaust_memory(wish["oom"])
        elif "reach" in wish:
            cloud.reachable.add(int(wish["reach"]))
        else:
            raise ValueError(f"unknown wish {sorted(wish)}")
        return self._state()

    def _state(self) -> dict[str, Any]:
        cloud = self.server.cloud
        hidden = ("dockerArgs", "env")
        pods = [{key: value for key, value in pod.items() if key not in hidden} for pod in cloud.pods()]
        return {"pods": pods, "faults": [vars(fault) for fault in cloud.faults], "log": cloud.log}

    def _send(self, status: int, body: str | dict[str, Any]) -> None:
        raw = (body if isinstance(body, str) else json.dumps(body)).encode()
        with contextlib.suppress(ConnectionError):  # a client that was killed or timed out
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method that it overrides
        """Requests are in the log that /_control shows."""


if __name__ == "__main__":
    Server(int(sys.argv[1]), os.environ[KEY_VARIABLE], sys.argv[2:]).serve_forever()
