"""The image under test, built if need be; containers of it; a registry on the loopback address."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "image"


def missing(reason: str) -> None:
    """Skip, except where the tests decide what lands: there, what cannot be tested is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Images:
    """An engine and the image under test."""

    name: str
    engine: str
    environment: dict[str, str]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``docker WORDS…`` or ``podman WORDS…``, whatever its exit status."""
        return subprocess.run([self.engine, *words], env=self.environment, capture_output=True, text=True, timeout=300)

    def run(self, *words: str, options: tuple[str, ...] = (), image: str = "") -> str:
        """The output of a command in a fresh container without a network. Fails the test when the command fails."""
        network = () if any(each.startswith("--network") for each in options) else ("--network", "none")
        done = self.command("run", "--rm", *network, *options, image or self.name, *words)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def inspect(self, form: str, image: str = "") -> str:
        done = self.command("image", "inspect", "--format", form, image or self.name)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@dataclass(frozen=True)
class Container:
    """A running container of the image, for commands that cost less than a container each."""

    images: Images
    name: str

    def run(self, *words: str, user: str = "root") -> str:
        done = self.images.command("exec", "--user", user, self.name, *words)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def bash(self, script: str, user: str = "root") -> str:
        return self.run("bash", "-c", script, user=user)


def engine_environment() -> tuple[str, dict[str, str]]:
    """``docker``, or ``podman`` with what makes it see the images of scripts/image."""
    done = subprocess.run([SCRIPT, "env"], capture_output=True, text=True)
    if done.returncode != 0:
        missing(done.stderr.strip())
    settings = dict(re.findall(r"(CONTAINERS_\w+)=(\S+)", done.stdout))
    kept = {name: value for name, value in os.environ.items() if not settings or not name.startswith("DOCKER_")}
    return ("podman" if settings else "docker"), kept | settings


@pytest.fixture(scope="session")
def images() -> Images:
    """The image that ``BAFOGPT_IMAGE`` names, or the one of this working tree, built when there is none."""
    engine, environment = engine_environment()
    named = os.environ.get("BAFOGPT_IMAGE", "")
    ours = subprocess.run([SCRIPT, "name"], capture_output=True, text=True, check=True).stdout.strip()
    found = Images(named or ours, engine, environment)
    if not named:
        built = subprocess.run([SCRIPT, "build"], capture_output=True, text=True)  # seconds when nothing has changed
        if built.returncode != 0:
            missing(f"the image cannot be built here: {(built.stdout + built.stderr)[-1500:]}")
    elif found.command("image", "inspect", found.name).returncode != 0:
        missing(f"there is no image {found.name} here")
    return found


@pytest.fixture(scope="session")
def container(images: Images) -> Iterator[Container]:
    """A container without a network, as root, that is gone with the session, or soon after one that was killed."""
    started = images.command("run", "--detach", "--rm", "--network", "none", images.name, "sleep", "1800")
    assert started.returncode == 0, started.stderr
    name = started.stdout.strip()
    yield Container(images, name)
    images.command("rm", "--force", "--time", "0", name)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``127.0.0.1:PORT`` of an empty registry, which speaks plain HTTP as engines expect of that address."""
    if shutil.which("docker-registry") is None:
        if os.getuid() != 0 or shutil.which("apt-get") is None:
            missing("docker-registry is not installed")
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=900", "install", "-y", "-qq", "--no-install-recommends"]
        if subprocess.run([*apt, "docker-registry"], capture_output=True).returncode != 0:
            missing("docker-registry could not be installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("registry")
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["docker-registry", "serve", config], stdout=quiet, stderr=quiet) as server:
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield address
        finally:
            server.kill()
