"""From a change of code to a digest that others pull: built, published to a registry on loopback, pulled, run."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.image.conftest import Images
from tests.workflows.tree import Tree

TAG = "tested"


@pytest.fixture(scope="module")
def tree(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A committed copy of the working tree with a change of code, on the base of the image under test."""
    copy = Tree(tmp_path_factory.mktemp("tree") / "project", timeout=600)
    base = images.inspect('{{index .Config.Labels "bafogpt.from"}}')
    copy.environment = images.environment | {"BAFOGPT_IMAGE_TAG": TAG, "BAFOGPT_BASE_IMAGE": base}
    (copy.root / "bafogpt" / "marker.py").write_text('"""A new module."""\n\nCHANGED = "yes"\n')
    copy.commit()
    return copy


@pytest.fixture(scope="module")
def built(tree: Tree, images: Images) -> Iterator[Images]:
    """The copy's image, built twice: once with the change, once with none."""
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        tree.passes("scripts/image", "build")
        seconds.append(time.monotonic() - began)

    print("change of code {:.1f} s, no change {:.1f} s".format(*seconds))
    if not os.environ.get("CI"):  # shared machines have no fixed speed
        assert seconds[0] <= 60 and seconds[1] <= 30
    name = f"localhost/bafogpt/train:{TAG}"
    yield replace(images, name=name)
    images.command("rmi", "--force", name)


def layers(images: Images) -> list[str]:
    return images.inspect("{{json .RootFS.Layers}}").strip("[]").split(",")


def test_a_change_of_code_is_in_the_image_and_in_no_large_layer(tree: Tree, built: Images, images: Images) -> None:
    before, after = layers(images), layers(built)

    assert built.run("python3", "-c", "import bafogpt.marker as m; print(m.CHANGED)") == "yes\n"
    assert built.inspect('{{index .Config.Labels "org.opencontainers.image.revision"}}') == tree.git(
        "rev-parse", "HEAD"
    )
    assert before != after
    assert before[:-2] == after[:-2], "only the wheel and its installation may differ"


def test_the_same_commit_built_without_cache_gives_the_same_layers(tree: Tree, built: Images) -> None:
    before = layers(built)

    tree.passes("scripts/image", "build", "--no-cache")

    assert layers(built) == before


def test_a_pushed_image_is_pulled_by_digest_and_runs(tree: Tree, built: Images, registry: str) -> None:
    pushed = tree.passes("scripts/image", "push", f"{registry}/bafogpt/train:dev", "--digest-file", ".output")

    digest = (tree.root / ".output").read_text().strip()
    reference = f"{registry}/bafogpt/train@{digest}"
    assert pushed.splitlines()[-1] == reference
    built.output("pull", *(() if built.engine == "docker" else ("--tls-verify=false",)), reference)
    try:
        assert digest in built.inspect("{{json .RepoDigests}}", reference)
        assert built.run("bafogpt", "--version", image=reference).startswith("bafogpt ")
    finally:
        built.command("rmi", reference)


def published(registry: str) -> str:
    with urllib.request.urlopen(f"http://{registry}/v2/_catalog", timeout=10) as answer:
        return str(answer.read())


def test_a_tree_with_changes_is_not_published(tree: Tree, built: Images, registry: str) -> None:
    stray = tree.root / "bafogpt" / "stray.py"
    stray.touch()
    try:
        report = tree.refused("scripts/image", "push", f"{registry}/bafogpt/dirty:dev")
    finally:
        stray.unlink()

    assert "working tree has changes" in report and " hint: git" in report
    assert "bafogpt/dirty" not in published(registry)


def test_an_image_of_another_commit_is_not_published(tree: Tree, built: Images, registry: str) -> None:
    tree.git("commit", "-q", "--allow-empty", "-m", "not built yet")
    try:
        report = tree.refused("scripts/image", "push", f"{registry}/bafogpt/other:dev")
    finally:
        tree.git("reset", "-q", "--hard", "HEAD~1")

    assert "built from another commit" in report
    assert "bafogpt/other" not in published(registry)


def test_an_image_without_cuda_is_not_published_elsewhere(tree: Tree, built: Images) -> None:
    if built.inspect('{{index .Config.Labels "bafogpt.standin"}}') != "true":
        pytest.skip("this image is based on CUDA")

    assert "without CUDA" in tree.refused("scripts/image", "push", "registry.invalid/bafogpt/train:dev")
