"""From a change of code to a digest that others pull: built, published to a registry on loopback, pulled, run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, Images

PARTS = ("bafogpt", "docker", "jobs", "scripts", "sky", ".dockerignore", "LICENSE", "README.md")
TAG = "tested"
PINNED = ("constraints.txt", "pyproject.toml")


@dataclass(frozen=True)
class Tree:
    """A copy of this working tree with a history of its own, and the images of it."""

    path: Path
    images: Images
    base: str
    """What the image under test was built from, and those of the copy are."""

    def git(self, *words: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=self.path, check=True, capture_output=True)

    def image(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``./scripts/image WORDS…`` in the copy, whatever its exit status."""
        return subprocess.run(
            [self.path / "scripts" / "image", *words],
            env=self.images.environment | {"BAFOGPT_IMAGE_TAG": TAG, "BAFOGPT_BASE_IMAGE": self.base} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def build(self) -> float:
        """Seconds that a build took."""
        began = time.monotonic()
        done = self.image("build")
        assert done.returncode == 0, done.stdout + done.stderr
        return time.monotonic() - began


@pytest.fixture(scope="module")
def tree(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Clean, committed, with a change of code that the image of the working tree does not have."""
    tested = replace(images, name=f"localhost/bafogpt/train:{TAG}")
    copy = Tree(tmp_path_factory.mktemp("tree"), tested, images.inspect('{{index .Config.Labels "bafogpt.from"}}'))
    for name in (*PARTS, *PINNED):
        whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        whole(ROOT / name, copy.path / name)
    (copy.path / ".gitignore").write_text("__pycache__/\n")
    (copy.path / "bafogpt" / "marker.py").write_text('"""Says that it is there."""\n\nCHANGED = "yes"\n')
    copy.git("init", "-q")
    copy.git("add", "-A")
    copy.git("commit", "-q", "-m", "a change of code")
    yield copy
    images.command("rmi", "--force", copy.images.name)


def layers(images: Images, image: str = "") -> list[str]:
    return images.inspect("{{json .RootFS.Layers}}", image).strip("[]").replace('"', "").split(",")


@pytest.fixture(scope="module")
def built(tree: Tree) -> Tree:
    """The copy's image, built twice: once with the change, once with none."""
    with_change = tree.build()
    without = tree.build()

    print(f"code change {with_change:.1f} s, no change {without:.1f} s")
    if not os.environ.get("CI"):  # where machines are shared, seconds say little
        assert with_change <= 60 and without <= 30
    return tree


def test_a_change_of_code_is_in_the_image_and_leaves_the_other_layers_alone(built: Tree, images: Images) -> None:
    before, images = layers(images), built.images
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=built.path, capture_output=True, text=True).stdout.strip()

    said = images.run("python3", "-c", "import bafogpt.marker as m; print(m.CHANGED)")
    assert said.strip() == "yes"
    assert images.inspect('{{index .Config.Labels "org.opencontainers.image.revision"}}') == commit
    after = layers(images)
    assert before != after
    assert before[:-2] == after[:-2], "the wheel and its installation are all that differs"


def test_the_same_commit_built_anew_gives_the_same_layers(built: Tree) -> None:
    before = layers(built.images)

    done = built.image("build", "--no-cache")

    assert done.returncode == 0, done.stdout + done.stderr
    assert layers(built.images) == before


def test_what_is_pushed_is_pulled_by_digest_and_runs(built: Tree, registry: str, tmp_path: Path) -> None:
    images, file = built.images, tmp_path / "digest"

    pushed = built.image("push", f"{registry}/bafogpt/train:dev", "--digest-file", str(file))

    assert pushed.returncode == 0, pushed.stderr
    digest = file.read_text().strip()
    reference = f"{registry}/bafogpt/train@{digest}"
    assert pushed.stdout.strip() == reference
    insecure = () if images.engine == "docker" else ("--tls-verify=false",)
    pulled = images.command("pull", *insecure, reference)
    assert pulled.returncode == 0, pulled.stderr
    try:
        assert digest in images.inspect("{{json .RepoDigests}}", reference)
        assert images.run("bafogpt", "--version", image=reference).startswith("bafogpt ")
    finally:
        images.command("rmi", reference)


def test_a_dirty_tree_is_not_published(built: Tree, registry: str) -> None:
    stray = built.path / "bafogpt" / "stray.py"
    stray.write_text('"""Not committed."""\n')
    try:
        refused = built.image("push", f"{registry}/bafogpt/dirty:dev")
    finally:
        stray.unlink()

    assert refused.returncode == 1
    assert "working tree has changes" in refused.stderr
    assert " hint: git" in refused.stderr
    assert "bafogpt/dirty" not in catalogue(registry)


def test_an_image_of_another_commit_is_not_published(built: Tree, registry: str) -> None:
    built.git("commit", "-q", "--allow-empty", "-m", "not built yet")
    try:
        refused = built.image("push", f"{registry}/bafogpt/other:dev")
    finally:
        built.git("reset", "-q", "--hard", "HEAD~1")

    assert refused.returncode == 1
    assert "built from another commit" in refused.stderr
    assert "bafogpt/other" not in catalogue(registry)


def test_a_stand_in_is_not_published_elsewhere(built: Tree) -> None:
    if built.images.inspect('{{index .Config.Labels "bafogpt.standin"}}') != "true":
        pytest.skip("this image stands on CUDA")

    refused = built.image("push", "registry.invalid/bafogpt/train:dev")

    assert refused.returncode == 1
    assert "without CUDA" in refused.stderr


def catalogue(registry: str) -> str:
    with urllib.request.urlopen(f"http://{registry}/v2/_catalog", timeout=10) as answer:
        return str(answer.read())
