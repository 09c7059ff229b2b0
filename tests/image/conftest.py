"""The image under test, built if necessary; containers of it; a registry on the loopback address."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import registry as registries

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "image"


def missing(reason: str) -> None:
    """Skip the test; fail it in CI, where the tests decide whether a change lands."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@dataclass(frozen=True)
class Images:
    """An engine and the image under test."""

    name: str
    engine: str
    environment: dict[str, str]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``docker WORDS…`` or ``podman WORDS…``."""
        return subprocess.run([self.engine, *words], env=self.environment, capture_output=True, text=True, timeout=300)

    def output(self, *words: str) -> str:
        done = self.command(*words)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *words: str, options: tuple[str, ...] = ("--network=none",), image: str = "") -> str:
        """Output of a command in a new container."""
        return self.output("run", "--rm", *options, image or self.name, *words)

    def inspect(self, form: str, image: str = "") -> str:
        return self.output("image", "inspect", "--format", form, image or self.name).strip()


@dataclass(frozen=True)
class Container:
    """A running container of the image; a command in it costs less than a new container."""

    images: Images
    name: str

    def run(self, *words: str, user: str = "root") -> str:
        return self.images.output("exec", "--user", user, self.name, *words)


def engine_environment() -> tuple[str, dict[str, str]]:
    """``docker``, or ``podman`` with the variables that show it the images of scripts/image."""
    done = subprocess.run([SCRIPT, "env"], capture_output=True, text=True)
    if done.returncode != 0:
        missing(done.stderr.strip())
    settings = dict(re.findall(r"(CONTAINERS_\w+)=(\S+)", done.stdout))
    kept = {name: value for name, value in os.environ.items() if not settings or not name.startswith("DOCKER_")}
    return ("podman" if settings else "docker"), kept | settings


@pytest.fixture(scope="session")
def images() -> Images:
    """The image named by ``BAFOGPT_IMAGE``, or that of this working tree, built first (seconds if nothing changed)."""
    engine, environment = engine_environment()
    named = os.environ.get("BAFOGPT_IMAGE", "")
    ours = subprocess.run([SCRIPT, "name"], capture_output=True, text=True, check=True).stdout.strip()
    found = Images(named or ours, engine, environment)
    if not named:
        built = subprocess.run([SCRIPT, "build"], capture_output=True, text=True)
        if built.returncode != 0:
            missing(f"the image cannot be built here: {(built.stdout + built.stderr)[-1500:]}")
    elif found.command("image", "inspect", found.name).returncode != 0:
        missing(f"there is no image {found.name} here")
    return found


@pytest.fixture(scope="session")
def container(images: Images) -> Iterator[Container]:
    """A container without a network, as root; it also ends itself after half an hour."""
    name = images.output("run", "--detach", "--rm", "--network", "none", images.name, "sleep", "1800").strip()
    yield Container(images, name)
    images.command("rm", "--force", "--time", "0", name)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not registries.installed():
        missing("docker-registry is not installed and could not be")
    with registries.running(tmp_path_factory.mktemp("registry")) as address:
        yield address
