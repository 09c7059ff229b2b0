"""The proxy injects the fault it is told to, and no other."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from .fault_script import Script
from .proxy import Direction, Fault, Kind, Proxy, Request

BODY = bytes(range(256)) * 1000
BROKEN = (OSError, http.client.HTTPException)


class Echo(BaseHTTPRequestHandler):
    """GET gives BODY; PUT is kept in ``seen``."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, bytes]

    def do_GET(self) -> None:
        self.send_response(200)
        chunked = self.path == "/chunked"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(BODY)))))
        self.end_headers()
        self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" if chunked else BODY)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) == int(self.headers["Content-Length"]):
            self.seen[self.path] = body
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    echo = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    echo.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections break here
    threading.Thread(target=echo.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{echo.server_address[1]}"
    echo.shutdown()
    echo.server_close()


@contextmanager
def proxied(server: str, fault: Fault | None = None, **options: object) -> Iterator[Proxy]:
    Echo.seen = {}
    with Proxy(server, decide=lambda _: fault, **options) as proxy:  # type: ignore[arg-type]
        yield proxy


def ask(proxy: Proxy, method: str = "GET", path: str = "/x", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_a_fault_every_request_of_a_connection_passes_unchanged_and_is_counted(server: str):
    with proxied(server) as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5)
        for path, expected in (("/x", BODY), ("/chunked", b"abcde")):
            connection.request("GET", path)
            assert connection.getresponse().read() == expected
        connection.close()
        assert ask(proxy, "PUT", "/kept", BODY) == (200, b"")
        assert Echo.seen["/kept"] == BODY
        assert (proxy.up, proxy.down) == (len(BODY), len(BODY) + 5)


@pytest.mark.parametrize(
    ("kind", "direction", "done"),
    [("hang-up", "down", False), ("lost-answer", "down", True), ("reset", "up", False), ("status", "down", False)],
)
def test_a_request_that_fails_was_done_or_not(server: str, kind: Kind, direction: Direction, done: bool):
    with proxied(server, Fault(kind, direction)) as proxy:
        if kind == "status":
            assert ask(proxy, "PUT", "/kept", BODY)[0] == 503
        else:
            with pytest.raises(BROKEN):
                ask(proxy, "PUT", "/kept", BODY)
    assert ("/kept" in Echo.seen) is done


def test_a_reset_breaks_the_answer_off(server: str):
    with proxied(server, Fault("reset", "down")) as proxy, pytest.raises(BROKEN):
        ask(proxy)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_flip_changes_one_bit_and_a_truncated_body_looks_whole(server: str, direction: Direction):
    def passed(fault: Fault) -> bytes:
        with proxied(server, fault) as proxy:
            status, body = ask(proxy) if direction == "down" else ask(proxy, "PUT", "/kept", BODY)
            assert status == 200
        return body or Echo.seen["/kept"]

    different = [a ^ b for a, b in zip(passed(Fault("flip", direction, at=0.3)), BODY, strict=True) if a != b]
    assert [each.bit_count() for each in different] == [1]
    assert passed(Fault("truncate", direction, at=0.25)) == BODY[: len(BODY) // 4]


def test_a_stall_and_an_uplink_take_their_time(server: str):
    for options in ({"fault": Fault("stall", "up", seconds=0.2)}, {"uplink": len(BODY) / 0.2}):
        with proxied(server, **options) as proxy:  # type: ignore[arg-type]
            start = time.monotonic()
            assert ask(proxy, "PUT", "/kept", BODY)[0] == 200
            assert time.monotonic() - start >= 0.2


def test_a_watcher_sees_each_stage_and_can_end_it(server: str):
    seen: list[str] = []

    def watch(request: Request, stage: str) -> bool:
        seen.append(f"{stage} {request.label}")
        return stage == "half" and request.path.endswith("3.json")

    with proxied(server, watch=watch) as proxy:
        ask(proxy, "PUT", "/b/runs/r/checkpoints/step-00000003/a/model.bin", b"1234")
        assert seen == ["before PUT file", "half PUT file", "after PUT file"]
        with pytest.raises(BROKEN):
            ask(proxy, "PUT", "/b/runs/r/checkpoints/step-00000003.json", b"1234")
        assert seen[3:] == ["before PUT marker", "half PUT marker"]
        ask(proxy, "PUT", "/b/checkpoints/step-00000004.json", b"{}")
        assert proxy.committed == {"b/checkpoints/step-00000004.json"}


def drawn(seed: int, order: list[int]) -> dict[int, list[Fault | None]]:
    script = Script(seed, rate=0.5)
    found: dict[int, list[Fault | None]] = {number: [] for number in order}
    for number in order:
        found[number].append(script(Request("GET", f"b/shards/{number}", {}, 0)))
    return found


def test_faults_follow_from_the_seed_in_any_order_of_requests_and_let_a_patient_client_through():
    forth = [number for _ in range(5) for number in range(20)]
    assert drawn(1, forth) == drawn(1, sorted(forth)) != drawn(2, forth)
    script, request = Script(1, rate=1.0, patience=3), Request("GET", "b/shards/1", {}, 0)
    assert any(script(request) is None for _ in range(4))
