from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bafogpt.cli.main import main
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import server

if TYPE_CHECKING:
    from tests.conftest import S3

COMMAND = [sys.executable, "-c", "import sys; from bafogpt.cli.main import main; sys.exit(main())", "storage"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, named in the environment."""
    monkeypatch.setenv("BAFOGPT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    server.stop(tmp_path / "home")


def _here() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_a_signal_and_prints_no_secret(home: Path, number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "serve"], stdout=subprocess.PIPE, text=True, env=_here()) as serving:
        assert serving.stdout is not None
        said = serving.stdout.readline() + serving.stdout.readline()
        endpoint = server.status(home)
        assert endpoint is not None
        assert endpoint.url in said
        assert f"set -a; . '{home}/s3/credentials'; set +a" in said
        assert endpoint.secret_key not in said
        serving.send_signal(number)
        assert serving.wait(10) == 0
        assert endpoint.secret_key not in serving.stdout.read()


def test_a_detached_server_runs_until_it_is_stopped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storage", "serve", "--detach", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    endpoint = server.status(home)
    assert endpoint is not None
    assert record == {"endpoint": endpoint.url, "region": "us-east-1", "credentials": f"{home}/s3/credentials"}
    assert main(["storage", "stop"]) == 0
    assert capsys.readouterr().out == "stopped\n"
    assert server.status(home) is None
    assert main(["storage", "stop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": False}


def test_ls_lists_by_url_and_by_path(
    s3: S3, bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    bucket.put("runs/a/run.json", b"{}")
    bucket.put("data/x", b"123")
    place = bucket.url.removeprefix(f"{s3.url}/")

    assert main(["storage", "ls", bucket.url, "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == ["data/x", "runs/a/run.json"]
    assert main(["storage", "ls", f"{place}/data/", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["path"], record["bytes"]) == ("x", 3)
    assert main(["storage", "ls", f"{place}/nothing"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"nothing below {bucket.url}/nothing\n")


def test_ls_of_a_bucket_that_is_not_there_says_so(
    s3: S3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["storage", "ls", "s3://not-there"]) == 1
    assert "no bucket 'not-there'" in capsys.readouterr().err
