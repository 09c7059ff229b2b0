"""The doctor's checks: a real bucket, servers on loopback for the Hub and SkyPilot's API, checks that hang or crash."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import StorageError
from bafogpt.core.settings import Settings
from bafogpt.launch import doctor, sky_probe
from bafogpt.launch.doctor import Check, CheckContext, Finding
from bafogpt.storage.bucket import Bucket
from tests.conftest import S3
from tests.launch.prices import install_catalog

ROOT = Path(__file__).parents[2]
REMOTE = Settings(bucket="s3://somewhere", s3_endpoint="", home="unused")


def context(settings: Settings = REMOTE, infra: str = "runpod", gpus: str = "L40:4", **more: Any) -> CheckContext:
    task = {"resources": {"accelerators": gpus}, "secrets": {"AWS_ACCESS_KEY_ID": None, "HF_TOKEN": None}}
    return CheckContext(**{"settings": settings, "infra": infra, "task": task, "root": ROOT, **more})


@pytest.fixture
def serve() -> Iterator[Callable[[int, Any], str]]:
    """``serve(status, value)`` starts a server on loopback that always answers so; returns its address."""
    running: list[http.server.HTTPServer] = []

    def start(status: int, value: Any) -> str:
        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *message: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def states(found: list[Finding]) -> dict[str, str]:
    return {each.name: each.state for each in found}


def test_a_check_that_hangs_is_reported_and_delays_no_other():
    never = threading.Event()

    def hang(_: CheckContext) -> list[Finding]:
        never.wait()
        return []

    checks = [
        Check("hangs", hang, deadline_s=0.2),
        Check("hangs too", hang, deadline_s=0.2),
        Check("works", lambda _: [Finding("works", "ok", "")]),
    ]
    begun = time.monotonic()
    found = list(doctor.run_checks(context(), checks))

    assert time.monotonic() - begun < 30
    assert states(found) == {"hangs": "failed", "hangs too": "failed", "works": "ok"}
    assert found[0].message == "no answer within 0.2 s"
    never.set()


def test_an_exception_of_a_check_is_its_finding():
    def refuse(_: CheckContext) -> list[Finding]:
        raise StorageError("no such thing", "type this")

    def break_down(_: CheckContext) -> list[Finding]:
        raise KeyError("surprise")

    refused, broken = doctor.run_checks(context(), [Check("a", refuse), Check("b", break_down)])
    assert (refused.state, refused.message, refused.hint) == ("failed", "no such thing", "type this")
    assert broken.state == "failed" and "KeyError: 'surprise'" in broken.message


def test_a_working_bucket_is_tried_and_left_unchanged(bucket: Bucket, s3: S3):
    found = doctor.check_bucket(context(replace(s3.settings, bucket=bucket.url), infra="local"))

    assert states(found) == {"bucket": "ok", "If-None-Match": "ok", "clock": "ok"}
    assert bucket.list() == []


def test_a_store_that_ignores_conditional_writes_is_found(bucket: Bucket, s3: S3, monkeypatch: pytest.MonkeyPatch):
    plain = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, path, data, create_only=False: plain(self, path, data))
    found = doctor.check_bucket(context(replace(s3.settings, bucket=bucket.url), infra="local"))

    assert states(found)["If-None-Match"] == "failed"
    assert bucket.list() == []


def test_a_missing_bucket_and_a_local_one_for_a_rented_machine(s3: S3, tmp_path: Path):
    missing = replace(s3.settings, bucket="s3://missing-bucket")
    (found,) = doctor.run_checks(context(missing, infra="local"), [Check("bucket", doctor.check_bucket)])
    assert found.state == "failed" and "no bucket 'missing-bucket'" in found.message and found.hint
    (found,) = doctor.check_bucket(context(s3.settings))
    assert found.state == "failed" and "a rented machine cannot reach it" in found.message
    folder = context(replace(s3.settings, bucket=f"file://{tmp_path}"), infra="local")
    assert states(doctor.check_bucket(folder)) == {"bucket": "ok", "If-None-Match": "ok"}


@pytest.mark.parametrize(
    ("stamp", "state", "message"),
    [
        (1000.0, "ok", "agrees"),
        (999.2, "ok", "agrees"),  # whole seconds, rounded down
        (1100.0, "warning", "98 s behind"),
        (900.0, "warning", "99 s ahead of"),
        (100.0, "failed", "899 s ahead of"),
        (3000.0, "failed", "1,998 s behind"),
    ],
)
def test_the_clock_is_compared_with_the_stores(stamp, state, message):
    found = doctor._clock_skew(before=1000.0, after=1002.0, written=stamp)

    assert found.state == state
    assert message in found.message


@pytest.mark.parametrize(
    ("token", "publishes", "state", "message"),
    [
        ({"role": "write"}, True, "ok", "HF_TOKEN of thandi may write"),
        ({"role": "read"}, True, "failed", "it cannot publish"),
        ({"role": "read"}, False, "warning", "it cannot publish"),
        (
            {"role": "fineGrained", "fineGrained": {"scoped": [{"permissions": ["repo.write"]}]}},
            True,
            "ok",
            "repo.write",
        ),
        ({"role": "fineGrained", "fineGrained": {"global": ["inference"]}}, True, "failed", "it cannot publish"),
    ],
)
def test_the_permissions_of_the_hubs_token(serve, monkeypatch, token, publishes, state, message):
    monkeypatch.setenv("HF_ENDPOINT", serve(200, {"name": "thandi", "auth": {"accessToken": token}}))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    (found,) = doctor.check_hub(context(publishes=publishes))

    assert (found.state, message in found.message) == (state, True), found
    assert "planted" not in found.message + found.hint


def test_a_rejected_token_and_a_missing_one(serve, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", serve(401, {"error": "Invalid credentials"}))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    (found,) = doctor.check_hub(context())
    assert (found.state, found.message) == ("failed", "the Hub does not accept HF_TOKEN")
    monkeypatch.delenv("HF_TOKEN")
    assert doctor.check_hub(context())[0].state == "warning"
    assert doctor.check_hub(context(publishes=True))[0].state == "failed"


def test_the_api_server(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", serve(200, {"status": "healthy", "version": "0.14.1"}))
    (found,) = doctor.check_api_server(context())
    assert found.state == "ok" and "SkyPilot 0.14.1" in found.message
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.check_api_server(context())[0].state == "warning"  # the first launch starts it
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT")
    config = tmp_path / "config.yaml"
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", "47680")
    assert doctor.api_server() == "http://127.0.0.1:47680"
    config.write_text("api_server: {endpoint: 'http://sky.invalid:46580/'}\n")
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(config))
    assert doctor.api_server() == "http://sky.invalid:46580"
    assert doctor.check_api_server(context())[0].state == "failed"


def test_clouds_by_skypilots_answer(monkeypatch):
    def answers(value: Any) -> None:
        monkeypatch.setattr(sky_probe, "ask", lambda *message, deadline_s: value)

    answers({"clouds": {"runpod": {"enabled": True, "reason": ""}}})
    assert doctor.check_clouds(context())[0].state == "ok"
    answers({"clouds": {"runpod": {"enabled": False, "reason": "no key"}}})
    (found,) = doctor.check_clouds(context())
    assert (found.state, found.message, found.hint) == ("failed", "runpod: no key", "sky check runpod")
    assert doctor.check_clouds(context(infra="local"))[0].state == "warning"
    answers(None)
    assert doctor.check_clouds(context())[0].state == "failed"
    monkeypatch.setattr(sky_probe, "installed", lambda: False)
    assert doctor.check_skypilot(context())[0].hint == sky_probe.INSTALL_HINT
    assert doctor.check_skypilot(context(infra="local"))[0].state == "warning"


def test_missing_secrets(monkeypatch):
    (found,) = doctor.check_secrets(context())
    assert (found.state, found.hint) == ("failed", "export AWS_ACCESS_KEY_ID=…")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted")
    (found,) = doctor.check_secrets(context())
    assert found.state == "ok" and "planted" not in found.message


def test_the_gpu_and_its_price(tmp_path, monkeypatch):
    install_catalog(tmp_path / "home", monkeypatch)
    (found,) = doctor.check_gpu(context())
    assert found.state == "ok" and "on demand 4.40 $/h, spot 2.40 $/h" in found.message
    (found,) = doctor.run_checks(context(gpus="A10:1"), [Check("gpu", doctor.check_gpu)])
    assert found.state == "failed" and "A10:1 at lambda" in found.message
    (found,) = doctor.check_gpu(context(infra="azure"))
    assert found.state == "warning"


def test_the_image_of_this_checkout():
    (found,) = doctor.check_image(context())
    assert found.state in ("ok", "warning")  # pinned by its digest, or not yet
    assert (found.state == "ok") == ("@sha256:" in found.message)


@pytest.mark.slow
def test_skypilots_own_check_of_credentials():
    pytest.importorskip("sky")
    (found,) = doctor.check_clouds(context())

    assert found.state == "failed"
    assert found.message.startswith("runpod: ")
    assert found.hint == "sky check runpod"
