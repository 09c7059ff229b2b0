"""The scripts that publish: images to a real registry on this machine, pins to a real repository."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import registry as registries
from tests.workflows.tree import ROOT, Tree

IMAGE = r"""[[ $1 == base || $1 == build ]] && exit 0
shift; [[ $1 == --base ]] && shift
python3 - <<'PYTHON'
import hashlib, json, pathlib

folder = pathlib.Path(".image")
folder.mkdir(exist_ok=True)

def blob(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

layers = [blob(pathlib.Path(".seed").read_bytes(), "layer.v1.tar")]
config = blob(b"{}", "config.v1+json")
kind = "application/vnd.oci.image.manifest.v1+json"
manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
(folder / "manifest.json").write_text(json.dumps(manifest))
(folder / "version").write_text("Directory Transport Version: 1.1\n")
PYTHON
skopeo copy -q --preserve-digests --dest-tls-verify=false dir:.image "docker://$1" --digestfile "$3"
"""
"""Stand-in for scripts/image that pushes an image with one layer, the file ``.seed``."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (shutil.which("docker-registry") and shutil.which("skopeo")):
        pytest.skip("docker-registry and skopeo are not installed (./scripts/image installs them)")
    with registries.running(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def publisher(tree: Tree) -> Tree:
    """A repository of one commit of version 1.2.0 whose ``scripts/image`` is the stand-in."""
    (tree.root / ".seed").write_text("first")
    tree.stand_in("scripts/image", IMAGE)
    (tree.root / "bafogpt" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tree.root / "CHANGELOG.md").write_text("## 1.2.0 (2026-01-02)\n\n- all\n")
    tree.commit()
    return tree


def digest_in(registry: str, repository: str, tag: str) -> str | None:
    request = urllib.request.Request(
        f"http://{registry}/v2/{repository}/manifests/{tag}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return "sha256:" + hashlib.sha256(answer.read()).hexdigest()
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return None


def test_an_image_is_pushed_under_its_commit_and_printed_by_digest(publisher: Tree, registry: str) -> None:
    commit = publisher.git("rev-parse", "HEAD")[:12]

    publisher.passes("scripts/ci/publish-image", f"{registry}/one")

    digest = digest_in(registry, "one", f"sha-{commit}")
    assert digest and publisher.output == {"digest": digest, "reference": f"{registry}/one:sha-{commit}@{digest}"}


def test_a_version_is_the_same_image_and_is_published_once(publisher: Tree, registry: str) -> None:
    publisher.passes("scripts/ci/publish-image", f"{registry}/two", "v1.2.0")
    first = publisher.output["digest"]
    assert digest_in(registry, "two", "v1.2.0") == first

    (publisher.root / ".seed").write_text("second")
    report = publisher.refused("scripts/ci/publish-image", f"{registry}/two", "v1.2.0")
    assert "is published already" in report and "hint:" in report
    assert digest_in(registry, "two", "v1.2.0") == first

    assert "the package says 1.2.0" in publisher.refused("scripts/ci/publish-image", f"{registry}/two", "v1.3.0")
    assert digest_in(registry, "two", "v1.3.0") is None


def test_a_nightly_build_of_a_published_commit_moves_no_tag(publisher: Tree, registry: str) -> None:
    commit = publisher.git("rev-parse", "HEAD")[:12]
    publisher.passes("scripts/ci/publish-image", f"{registry}/three")
    first = publisher.output["digest"]
    (publisher.root / ".seed").write_text("with updates")

    publisher.passes("scripts/ci/publish-image", f"{registry}/three")

    assert publisher.output["digest"] != first
    assert f":sha-{commit}-20" in publisher.output["reference"]
    assert digest_in(registry, "three", f"sha-{commit}") == first


def test_an_unreachable_registry_is_an_error_and_nothing_is_pushed(publisher: Tree) -> None:
    report = publisher.refused("scripts/ci/publish-image", "127.0.0.1:1/four", "v1.2.0")

    assert "registry:" in report and "hint:" in report
    assert not any("push" in call for call in publisher.calls)


def test_a_base_is_built_once_for_its_pins(publisher: Tree, registry: str) -> None:
    for _ in range(2):
        publisher.passes("scripts/ci/base-image", f"{registry}/base", "")
    first = publisher.output["reference"]
    assert publisher.calls.count("image base") == 1
    assert first.startswith(f"{registry}/base@sha256:")

    (publisher.root / ".seed").write_text("security updates")
    publisher.passes("scripts/ci/base-image", f"{registry}/base", "--rebuild")
    assert publisher.calls.count("image base") == 2
    assert publisher.output["reference"] != first

    with (publisher.root / "constraints.txt").open("a") as pins:
        pins.write("zzz==1\n")
    publisher.passes("scripts/ci/base-image", f"{registry}/base")
    assert publisher.calls.count("image base") == 3


REFERENCE = "ghcr.io/bafogpt/train:sha-0123456789ab@sha256:" + "ab" * 32
BRANCH = "pin/" + "ab" * 6
PIN = 'if [[ $2 == pin ]]; then sed -i "s|^\\( *image_id: docker:\\).*|\\1$3|" sky/pretrain.yaml; fi'


@pytest.fixture
def origin(tree: Tree, tmp_path: Path) -> str:
    """A bare repository that is the remote of the copy, as an option of git."""
    tree.commit()
    bare = tmp_path / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    tree.git("remote", "add", "origin", str(bare))
    tree.git("push", "-q", "origin", "main")
    tree.stand_in("gh")
    return f"--git-dir={bare}"


def test_a_new_digest_becomes_a_branch_and_one_pull_request(tree: Tree, origin: str) -> None:
    before = tree.git("rev-parse", "HEAD")
    tree.bafogpt(PIN)

    tree.passes("scripts/ci/pin-pull-request", REFERENCE)

    assert f"docker:{REFERENCE}" in tree.git(origin, "show", f"{BRANCH}:sky/pretrain.yaml")
    assert tree.git(origin, "diff", "--name-only", "main", BRANCH) == "sky/pretrain.yaml"
    assert f"bafogpt image pin {REFERENCE} --revision {before}" in tree.calls
    assert "bafogpt image check" in tree.calls
    assert any(call.startswith("gh pr create --base main --head " + BRANCH) for call in tree.calls)

    tree.git("switch", "-q", "main")
    tree.passes("scripts/ci/pin-pull-request", REFERENCE)
    assert sum(call.startswith("gh pr create") for call in tree.calls) == 1


def test_a_pinned_digest_opens_no_pull_request(tree: Tree, origin: str) -> None:
    tree.bafogpt()

    report = tree.passes("scripts/ci/pin-pull-request", REFERENCE)

    assert report.splitlines()[-1] == "pin-pull-request: nothing to change"
    assert not any(call.startswith("gh") for call in tree.calls)


def test_the_real_command_pins_the_files_of_the_pull_request(tree: Tree, origin: str) -> None:
    tree.bafogpt(f'exec {ROOT / ".venv" / "bin" / "bafogpt"} "$@"')

    tree.passes("scripts/ci/pin-pull-request", REFERENCE)

    changed = tree.git(origin, "diff", "--name-only", "main", BRANCH).splitlines()
    assert "docker/image.yaml" in changed and "sky/pretrain.yaml" in changed
    for name in changed:
        assert "ab" * 32 in tree.git(origin, "show", f"{BRANCH}:{name}")
