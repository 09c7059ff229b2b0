"""The proxy does the harm it is told to, and no other."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from .proxy import Fault, Proxy, Request
from .script import Script

BODY = bytes(range(256)) * 1000


class Echo(BaseHTTPRequestHandler):
    """GET gives BODY; PUT is kept in ``seen``."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, bytes]

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            return
        self.seen[self.path] = body
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    Echo.seen = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections break here
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def proxied(echo: ThreadingHTTPServer, fault: Fault | None = None, **options: object) -> Iterator[Proxy]:
    url = f"http://127.0.0.1:{echo.server_address[1]}"
    with Proxy(url, decide=lambda _: fault, **options) as proxy:  # type: ignore[arg-type]
        yield proxy


def ask(proxy: Proxy, method: str = "GET", path: str = "/x", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


BROKEN = (OSError, http.client.HTTPException)


def test_without_a_fault_everything_passes_unchanged_and_is_counted(echo: ThreadingHTTPServer):
    with proxied(echo) as proxy:
        assert ask(proxy) == (200, BODY)
        assert ask(proxy, path="/chunked") == (200, b"abcde")
        assert ask(proxy, "PUT", "/kept", BODY) == (200, b"")
        assert Echo.seen["/kept"] == BODY
        assert (proxy.up, proxy.down) == (len(BODY), len(BODY) + 5)


def test_what_was_committed_does_not_change_while_somebody_goes_through_it(echo: ThreadingHTTPServer):
    with proxied(echo) as proxy:
        ask(proxy, "PUT", "/b/checkpoints/step-00000001.json", b"{}")
        for each in proxy.committed:
            ask(proxy, "PUT", "/b/checkpoints/step-00000002.json", b"{}")
            assert each.endswith("step-00000001.json")
        assert len(proxy.committed) == 2


def test_one_connection_carries_many_requests(echo: ThreadingHTTPServer):
    with proxied(echo) as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5)
        for _ in range(3):
            connection.request("GET", "/x")
            assert connection.getresponse().read() == BODY
        connection.close()


def test_a_status_is_answered_without_the_server(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("status", status=500)) as proxy:
        assert ask(proxy, "PUT", "/kept", b"x")[0] == 500
        assert Echo.seen == {}


def test_a_lost_answer_is_of_a_request_that_was_done(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("lost-answer")) as proxy:
        with pytest.raises(BROKEN):
            ask(proxy, "PUT", "/kept", b"x")
        assert Echo.seen == {"/kept": b"x"}


def test_a_hang_up_is_of_a_request_that_was_not_done(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("hang-up")) as proxy:
        with pytest.raises(BROKEN):
            ask(proxy, "PUT", "/kept", b"x")
        assert Echo.seen == {}


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_reset_breaks_the_body_off(echo: ThreadingHTTPServer, direction: str):
    with proxied(echo, Fault("reset", direction)) as proxy, pytest.raises(BROKEN):  # type: ignore[arg-type]
        ask(proxy, "PUT" if direction == "up" else "GET", "/kept", BODY if direction == "up" else None)
    assert Echo.seen == {}


def test_a_flip_changes_one_bit(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("flip", "down", at=0.3)) as proxy:
        _, body = ask(proxy)
    different = [a ^ b for a, b in zip(body, BODY, strict=True) if a != b]
    assert len(different) == 1
    assert different[0].bit_count() == 1


def test_a_flip_on_the_way_up_reaches_the_server(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("flip", "up")) as proxy:
        assert ask(proxy, "PUT", "/kept", BODY)[0] == 200
    assert sum(a != b for a, b in zip(Echo.seen["/kept"], BODY, strict=True)) == 1


def test_a_truncated_body_looks_whole(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("truncate", "down", at=0.25)) as proxy:
        assert ask(proxy) == (200, BODY[: len(BODY) // 4])
    with proxied(echo, Fault("truncate", "up", at=0.25)) as proxy:
        assert ask(proxy, "PUT", "/kept", BODY)[0] == 200
    assert Echo.seen["/kept"] == BODY[: len(BODY) // 4]


def test_a_stall_is_as_long_as_it_says(echo: ThreadingHTTPServer):
    with proxied(echo, Fault("stall", "down", seconds=0.2)) as proxy:
        start = time.monotonic()
        assert ask(proxy) == (200, BODY)
        assert time.monotonic() - start >= 0.2


def test_the_uplink_is_bounded(echo: ThreadingHTTPServer):
    with proxied(echo, uplink=len(BODY) / 0.2) as proxy:
        start = time.monotonic()
        ask(proxy, "PUT", "/kept", BODY)
        assert time.monotonic() - start >= 0.2


def test_connections_are_refused_until_it_resumes_on_the_same_port(echo: ThreadingHTTPServer):
    with proxied(echo) as proxy:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            ask(proxy)
        proxy.resume()
        assert ask(proxy) == (200, BODY)


def test_a_watcher_is_told_each_stage_and_can_end_it(echo: ThreadingHTTPServer):
    told: list[str] = []

    def watch(request: Request, stage: str) -> bool:
        told.append(f"{stage} {request.label}")
        return stage == "half" and request.path.endswith(".json")

    with proxied(echo, watch=watch) as proxy:
        ask(proxy, "PUT", "/b/runs/r/checkpoints/step-00000003/a/model.bin", b"1234")
        assert told == ["before PUT file", "half PUT file", "after PUT file"]
        with pytest.raises(BROKEN):
            ask(proxy, "PUT", "/b/runs/r/checkpoints/step-00000003.json", b"1234")
        assert told[3:] == ["before PUT marker", "half PUT marker"]
        assert list(Echo.seen) == ["/b/runs/r/checkpoints/step-00000003/a/model.bin"]


def drawn(seed: int, order: list[int]) -> dict[int, list[Fault | None]]:
    script = Script(seed, rate=0.5)
    found: dict[int, list[Fault | None]] = {number: [] for number in order}
    for number in order:
        found[number].append(script(Request("GET", f"b/shards/{number}", {}, 0)))
    return found


def test_the_same_seed_gives_the_same_faults_in_any_order_of_requests():
    forth = [number for _ in range(5) for number in range(20)]
    back = [number for number in range(20) for _ in range(5)]
    assert drawn(1, forth) == drawn(1, back)
    assert drawn(1, forth) != drawn(2, forth)


def test_a_script_lets_a_patient_client_through():
    script = Script(1, rate=1.0, patience=3)
    request = Request("GET", "b/shards/1", {}, 0)
    assert any(script(request) is None for _ in range(4))
