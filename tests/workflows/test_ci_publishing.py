"""The scripts that publish: images to a real registry on this machine, pins to a real repository."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.tree import ROOT, Tree

# scripts/image as the scripts of CI see it: an image of one file, which is another one with every new .seed
IMAGE = """[[ $1 == base || $1 == build ]] && exit 0
shift; [[ $1 == --base ]] && shift
python3 {maker} .seed .layout
skopeo copy -q --dest-tls-verify=false oci:.layout:it "docker://$1" --digestfile "$3"
"""
MAKER = """
import hashlib, io, json, pathlib, sys, tarfile

seed, layout = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2])
blobs = layout / "blobs" / "sha256"
blobs.mkdir(parents=True, exist_ok=True)

def put(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w") as tar:
    info = tarfile.TarInfo("seed")
    info.size = len(seed)
    tar.addfile(info, io.BytesIO(seed))
layer = put(buffer.getvalue(), "layer.v1.tar")
config = {"architecture": "amd64", "os": "linux", "config": {},
          "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
config = put(json.dumps(config).encode(), "config.v1+json")
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
            "layers": [layer]}
named = put(json.dumps(manifest).encode(), "manifest.v1+json")
named["annotations"] = {"org.opencontainers.image.ref.name": "it"}
(layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
(layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
"""
STRAY = ".stand-ins/\n.calls\n.output\n.summary\n.gitconfig\n.seed\n.layout/\n.maker.py\n.local/\n.config/\n"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real registry that holds nothing yet."""
    if not (shutil.which("docker-registry") and shutil.which("skopeo")):
        pytest.skip("docker-registry and skopeo are not installed (./scripts/image brings them)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    config = folder / "config.yml"
    config.write_text(
        json.dumps({"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": {"addr": address}})
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{address}/v2/", timeout=1).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        else:
            pytest.fail("the registry does not answer")
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def publisher(tree: Tree) -> Tree:
    """A repository of one commit whose ``scripts/image`` pushes a tiny image."""
    (tree.root / ".maker.py").write_text(MAKER)
    (tree.root / ".seed").write_text("first")
    tree.stand_in("scripts/image", IMAGE.format(maker=".maker.py"))
    (tree.root / "bafogpt" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tree.root / "CHANGELOG.md").write_text("## 1.2.0 (2026-01-02)\n\n- all\n")
    tree.commit()
    (tree.root / ".git" / "info" / "exclude").write_text(STRAY)
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


def test_an_image_is_pushed_under_its_commit_and_said_by_digest(publisher: Tree, registry: str) -> None:
    commit = publisher.git("rev-parse", "HEAD")[:12]

    done = publisher.run("scripts/ci/publish-image", f"{registry}/one")

    assert done.returncode == 0, done.stdout
    digest = digest_in(registry, "one", f"sha-{commit}")
    assert digest and publisher.output == {"digest": digest, "reference": f"{registry}/one:sha-{commit}@{digest}"}


def test_a_version_is_the_same_image_and_is_published_once(publisher: Tree, registry: str) -> None:
    done = publisher.run("scripts/ci/publish-image", f"{registry}/two", "v1.2.0")
    assert done.returncode == 0, done.stdout
    first = publisher.output["digest"]
    assert digest_in(registry, "two", "v1.2.0") == first

    (publisher.root / ".seed").write_text("second")
    done = publisher.run("scripts/ci/publish-image", f"{registry}/two", "v1.2.0")
    assert done.returncode == 1
    assert "is published already" in done.stdout and "hint:" in done.stdout
    assert digest_in(registry, "two", "v1.2.0") == first

    done = publisher.run("scripts/ci/publish-image", f"{registry}/two", "v1.3.0")
    assert "the package says 1.2.0" in done.stdout
    assert digest_in(registry, "two", "v1.3.0") is None


def test_the_nights_build_of_a_commit_moves_no_tag(publisher: Tree, registry: str) -> None:
    commit = publisher.git("rev-parse", "HEAD")[:12]
    publisher.run("scripts/ci/publish-image", f"{registry}/three")
    first = publisher.output["digest"]
    (publisher.root / ".seed").write_text("with updates")

    done = publisher.run("scripts/ci/publish-image", f"{registry}/three")

    assert done.returncode == 0, done.stdout
    assert publisher.output["digest"] != first
    assert f":sha-{commit}-20" in publisher.output["reference"]
    assert digest_in(registry, "three", f"sha-{commit}") == first


def test_a_silent_registry_is_not_taken_for_an_empty_one(publisher: Tree) -> None:
    done = publisher.run("scripts/ci/publish-image", "127.0.0.1:1/four", "v1.2.0")

    assert done.returncode == 1
    assert "registry:" in done.stdout and "hint:" in done.stdout
    assert not any("push" in call for call in publisher.calls)


def test_a_base_is_built_once_for_its_pins(publisher: Tree, registry: str) -> None:
    def built() -> int:
        return publisher.calls.count("image base")

    for _ in range(2):
        done = publisher.run("scripts/ci/base-image", f"{registry}/base", "")
        assert done.returncode == 0, done.stdout
    first = publisher.output["reference"]
    assert built() == 1
    assert first.startswith(f"{registry}/base@sha256:")

    (publisher.root / ".seed").write_text("security updates")
    done = publisher.run("scripts/ci/base-image", f"{registry}/base", "--rebuild")
    assert built() == 2
    assert publisher.output["reference"] != first

    pins = publisher.root / "constraints.txt"
    pins.write_text(pins.read_text() + "zzz==1\n")
    publisher.run("scripts/ci/base-image", f"{registry}/base")
    assert built() == 3


@pytest.fixture
def origin(tree: Tree, tmp_path: Path) -> Path:
    """A bare repository that is the remote of the copy."""
    tree.commit()
    bare = tmp_path / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    tree.git("remote", "add", "origin", str(bare))
    tree.git("push", "-q", "origin", "main")
    tree.stand_in("gh")
    return bare


REFERENCE = "ghcr.io/bafogpt/train:sha-0123456789ab@sha256:" + "ab" * 32
PINNED = 'if [[ $2 == pin ]]; then sed -i "s|^\\( *image_id: docker:\\).*|\\1$3|" sky/pretrain.yaml; fi'


def test_a_new_digest_becomes_a_branch_and_a_pull_request_once(tree: Tree, origin: Path) -> None:
    before = tree.git("rev-parse", "HEAD")
    tree.bafogpt(PINNED)
    tree.git("-C", str(origin), "log", "-1")

    done = tree.run("scripts/ci/pin-pull-request", REFERENCE)

    assert done.returncode == 0, done.stdout
    branch = "pin/" + "ab" * 6
    assert f"docker:{REFERENCE}" in tree.git("--git-dir", str(origin), "show", f"{branch}:sky/pretrain.yaml")
    assert tree.git("--git-dir", str(origin), "diff", "--name-only", "main", branch) == "sky/pretrain.yaml"
    assert f"bafogpt image pin {REFERENCE} --revision {before}" in tree.calls
    assert "bafogpt image check" in tree.calls
    assert any(call.startswith("gh pr create --base main --head " + branch) for call in tree.calls)

    tree.git("switch", "-q", "main")
    done = tree.run("scripts/ci/pin-pull-request", REFERENCE)
    assert done.returncode == 0, done.stdout
    assert sum(call.startswith("gh pr create") for call in tree.calls) == 1


def test_nothing_is_asked_where_the_digest_is_pinned_already(tree: Tree, origin: Path) -> None:
    tree.bafogpt()

    done = tree.run("scripts/ci/pin-pull-request", REFERENCE)

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "pin-pull-request: nothing to change")
    assert not any(call.startswith("gh") for call in tree.calls)
    assert origin.exists()


def test_the_real_command_pins_what_the_pull_request_asks_for(tree: Tree, origin: Path) -> None:
    real = ROOT / ".venv" / "bin" / "bafogpt"
    tree.bafogpt(f'exec {real} "$@"')

    done = tree.run("scripts/ci/pin-pull-request", REFERENCE)

    assert done.returncode == 0, done.stdout
    branch = "pin/" + "ab" * 6
    changed = tree.git("--git-dir", str(origin), "diff", "--name-only", "main", branch).splitlines()
    assert "docker/image.yaml" in changed and "sky/pretrain.yaml" in changed
    for name in changed:
        assert "ab" * 32 in tree.git("--git-dir", str(origin), "show", f"{branch}:{name}")
