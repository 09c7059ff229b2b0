"""Errors of ./scripts/image: two lines, the problem and a hint, before anything begins."""

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

TOOLS = ("bash", "cat", "chmod", "cut", "dirname", "env", "id", "mkdir", "mktemp", "mv", "rm", "sed", "sh", "tail")
UNKNOWN = "sha256:" + "0" * 64


def image(*words: str, environment: Mapping[str, str] = os.environ, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], env={**environment, **more}, capture_output=True, text=True, timeout=120)


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    problem, hint = done.stderr.strip().splitlines()[-2:]
    assert done.returncode == 1
    assert problem.startswith("image: ") and hint.startswith(" hint: ")
    assert [each for each in expected if each not in done.stderr] == []


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (0, ("no Docker daemon answers", "buildah podman runc", "install Docker")),
        (1000, ("without one images need root", "sudo ./scripts/image")),
    ],
    ids=["nothing to install one with", "not root"],
)
def test_no_engine(tools: Path, tmp_path: Path, user: int, expected: tuple[str, ...]) -> None:
    stub(tools, "id", f"echo {user}")

    refused(image("build", PATH=str(tools), BAFOGPT_IMAGE_STATE=str(tmp_path / "state")), *expected)
    assert (tmp_path / "state").exists() is (user == 0)


def test_an_unknown_engine(tmp_path: Path) -> None:
    refused(image("env", BAFOGPT_IMAGE_ENGINE="rkt", BAFOGPT_IMAGE_STATE=str(tmp_path)), "no engine 'rkt'")


def test_a_running_docker_daemon_is_used(tools: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    stub(tools, "docker", f'echo "$*" >>{log}\n[[ $1 != image ]] || exit 1')

    done = image("run", "true", PATH=str(tools), BAFOGPT_IMAGE_STATE=str(tmp_path / "state"))

    refused(done, "there is no image localhost/bafogpt/train:dev here", "./scripts/image build")
    assert log.read_text().splitlines()[:2] == ["info", "buildx version"]
    assert not list((tmp_path / "state").glob("*.conf"))


def test_a_full_disk_is_reported_before_a_build(images: Images) -> None:
    done = image("base", environment=images.environment, BAFOGPT_IMAGE_DISK_GIB="1000000")

    refused(done, "needs some 1000000 GiB", "GiB free", "BAFOGPT_IMAGE_STATE")
    assert done.stdout == ""


class Denied(http.server.BaseHTTPRequestHandler):
    """A registry that is up and denies every image."""

    def answer(self) -> None:
        body = b'{"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]}'
        self.send_response(200 if self.path == "/v2/" else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def denying() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denied) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_base_that_its_registry_no_longer_has(images: Images, registry: str) -> None:
    done = image("base", environment=images.environment, BAFOGPT_CUDA_IMAGE=f"{registry}/nvidia/cuda:13@{UNKNOWN}")

    refused(done, "is gone from its registry", "docker/base.Dockerfile")


def test_a_registry_that_denies_the_base(images: Images, denying: str) -> None:
    done = image("base", environment=images.environment, BAFOGPT_CUDA_IMAGE=f"{denying}/nvidia/cuda:13@{UNKNOWN}")

    refused(done, f"the registry of {denying}/nvidia/cuda", "refuses", "denied")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("bulid",), ("no command 'bulid'", "./scripts/image help")),
        (("push",), ("where to?",)),
        (("push", "--tag", "x"), ("no option --tag",)),
        (("push", f"r.example/x@{UNKNOWN}"), ("names a digest",)),
    ],
)
def test_wrong_words(tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]) -> None:
    refused(image(*words, BAFOGPT_IMAGE_STATE=str(tmp_path), BAFOGPT_IMAGE_ENGINE="docker"), *expected)


def test_help_works_without_an_engine(tools: Path) -> None:
    assert image("help", PATH=str(tools)).stdout.startswith("usage: ./scripts/image COMMAND")
