"""What ./scripts/image says when it cannot do what is asked: two lines, before anything was begun."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.image.conftest import SCRIPT, Images

NEEDED = ("bash", "cat", "chmod", "cut", "dirname", "env", "id", "mkdir", "mktemp", "mv", "rm", "sed", "sh", "tail")
NOBODY = "sha256:" + "0" * 64


def image(*words: str, environment: Mapping[str, str] = os.environ, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], env={**environment, **more}, capture_output=True, text=True, timeout=120)


def two_lines(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """The last two lines are what is wrong and what to type."""
    problem, hint = done.stderr.strip().splitlines()[-2:]
    assert done.returncode == 1
    assert problem.startswith("image: ") and hint.startswith(" hint: ")
    for each in expected:
        assert each in done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_no_engine_and_nothing_to_install_one_with(tools: Path, tmp_path: Path) -> None:
    stub(tools, "id", "echo 0")

    done = image("build", PATH=str(tools), BAFOGPT_IMAGE_STATE=str(tmp_path / "state"))

    two_lines(done, "no Docker daemon answers", "buildah podman runc", "install Docker")


def test_no_engine_and_not_root(tools: Path, tmp_path: Path) -> None:
    stub(tools, "id", "echo 1000")

    done = image("build", PATH=str(tools), BAFOGPT_IMAGE_STATE=str(tmp_path / "state"))

    two_lines(done, "without one images need root", "sudo ./scripts/image")
    assert not (tmp_path / "state").exists()


def test_an_engine_that_does_not_exist(tmp_path: Path) -> None:
    two_lines(image("env", BAFOGPT_IMAGE_ENGINE="rkt", BAFOGPT_IMAGE_STATE=str(tmp_path)), "no engine 'rkt'")


def test_a_docker_daemon_that_answers_is_taken(tools: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    stub(tools, "docker", f'echo "$*" >>{log}\n[[ $1 != image ]] || exit 1')

    done = image("run", "true", PATH=str(tools), BAFOGPT_IMAGE_STATE=str(tmp_path / "state"))

    two_lines(done, "there is no image localhost/bafogpt/train:dev here", "./scripts/image build")
    calls = log.read_text().splitlines()
    assert calls[:2] == ["info", "buildx version"]
    assert not list((tmp_path / "state").glob("*.conf"))


def test_a_disk_without_room_is_noticed_before_a_build(images: Images, tmp_path: Path) -> None:
    done = image("base", environment=images.environment, BAFOGPT_IMAGE_DISK_GIB="1000000")

    two_lines(done, "needs some 1000000 GiB", "GiB free", "BAFOGPT_IMAGE_STATE")
    assert done.stdout == ""


def test_a_base_that_its_registry_no_longer_has(images: Images, registry: str) -> None:
    done = image("base", environment=images.environment, BAFOGPT_CUDA_IMAGE=f"{registry}/nvidia/cuda:13@{NOBODY}")

    two_lines(done, "is gone from its registry", "docker/base.Dockerfile")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A registry that knows who asks and says no."""

    def do_GET(self) -> None:
        body = b'{"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]}'
        self.send_response(200 if self.path == "/v2/" else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_registry_that_refuses_the_base(images: Images, refusing: str) -> None:
    done = image("base", environment=images.environment, BAFOGPT_CUDA_IMAGE=f"{refusing}/nvidia/cuda:13@{NOBODY}")

    two_lines(done, f"the registry of {refusing}/nvidia/cuda", "refuses", "denied")


def test_words_that_are_wrong(tmp_path: Path) -> None:
    here = os.environ | {"BAFOGPT_IMAGE_STATE": str(tmp_path), "BAFOGPT_IMAGE_ENGINE": "docker"}

    two_lines(image("bulid", environment=here), "no command 'bulid'", "./scripts/image help")
    two_lines(image("push", environment=here), "where to?")
    two_lines(image("push", "--tag", "x", environment=here), "no option --tag")
    two_lines(image("push", f"r.example/x@{NOBODY}", environment=here), "names a digest")
    assert image("help").stdout.startswith("usage: ./scripts/image COMMAND")
