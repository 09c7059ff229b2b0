"""Pins meet: one file says which image runs, every task repeats it, run.json records it, and a difference is found."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bafogpt.core.errors import BafoError, ConfigError, ConflictError, NotFoundError
from bafogpt.jobs.image_ref import ImageReference
from bafogpt.launch import images

ROOT = Path(__file__).parents[2]
REPOSITORY = "ghcr.io/bafogpt/train"
DIGEST, OTHER = (f"sha256:{digit * 64}" for digit in "ab")
PINNED = ImageReference(repository=REPOSITORY, tag="sha-1", digest=DIGEST)
ODD = """\
# a task in another hand: quotes, a flow mapping, an anchor, a comment that names image_id: docker:x/y:1
resources:
  any_of:
    - {image_id: &image "docker:ghcr.io/bafogpt/train:0.1.0", accelerators: A10:1}  # this one
    - accelerators: L40:1
      image_id: *image
    - infra: kubernetes
      image_id: 'docker:ghcr.io/bafogpt/train:0.1.0'  # and that
run: |
  # image_id: docker:ghcr.io/bafogpt/train:0.1.0 is text here
  exec bafogpt job run jobs/pretrain.yaml
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout has of images, with a second task in another hand."""
    root = tmp_path / "checkout"
    for folder in ("sky", "jobs"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "docker").mkdir()
    (root / "docker" / "image.yaml").write_text(
        f"# which image\nrepository: {REPOSITORY}  # where\ntag: 0.1.0\ndigest: null   # none yet\n"
        "constraints:\nrevision: ~\n"
    )
    for path in (root / "sky").glob("*.yaml"):
        path.write_text(re.sub("docker:.*", f"docker:{REPOSITORY}:0.1.0", path.read_text()))
    (root / "sky" / "odd.yaml").write_text(ODD)
    (root / "constraints.txt").write_text("torch==2.9.0\n")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def commit(root: Path) -> str:
    """Everything in ``root`` as one commit."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_image_constraints_and_task_files_of_this_checkout_agree():
    images.check(ROOT)


def test_a_pin_changes_the_image_everywhere_and_nothing_else(checkout: Path):
    before = contents(checkout)
    changed = images.pin(checkout, PINNED)
    assert {str(path.relative_to(checkout)) for path in changed} == {
        "docker/image.yaml",
        *(str(path.relative_to(checkout)) for path in (checkout / "sky").iterdir()),
    }
    by_digest = f"docker:{REPOSITORY}@{DIGEST}"
    odd = (checkout / "sky" / "odd.yaml").read_text()
    assert odd == ODD.replace(f'"docker:{REPOSITORY}:0.1.0"', f'"{by_digest}"').replace(
        f"'docker:{REPOSITORY}:0.1.0'", f"'{by_digest}'"
    )
    for name, raw in before.items():
        if name not in ("docker/image.yaml", "sky/odd.yaml"):
            now = (checkout / name).read_text()
            assert now == raw.decode().replace(f"image_id: docker:{REPOSITORY}:0.1.0", f"image_id: {by_digest}"), name
            assert (by_digest in now) == name.startswith("sky/")
    assert (checkout / "docker" / "image.yaml").read_text() == (
        f"# which image\nrepository: {REPOSITORY}  # where\ntag: sha-1\ndigest: {DIGEST}   # none yet\n"
        f"constraints: {images.check(checkout).constraints}\nrevision: null\n"
    )


def test_a_pinned_task_is_one_that_skypilot_reads_the_digest_from(checkout: Path):
    sky = pytest.importorskip("sky", reason="needs bafogpt[cloud]")
    images.pin(checkout, PINNED)
    for path in (checkout / "sky").glob("*.yaml"):
        for each in sky.Task.from_yaml(str(path)).resources:
            assert each.extract_docker_image() == f"{REPOSITORY}@{DIGEST}"


def test_line_ends_modes_and_links_stay(checkout: Path):
    odd, real = checkout / "sky" / "odd.yaml", checkout / "real.yaml"
    real.write_bytes(ODD.replace("\n", "\r\n").encode())
    real.chmod(0o600)
    odd.unlink()
    odd.symlink_to(real)
    images.pin(checkout, PINNED)
    assert odd.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert real.read_bytes().count(b"\r\n") == ODD.count("\n")
    assert real.read_bytes().count(DIGEST.encode()) == 2


def test_a_second_pin_of_the_same_changes_nothing_and_a_newer_one_replaces_it(checkout: Path):
    images.pin(checkout, PINNED)
    assert images.pin(checkout, PINNED) == []
    images.pin(checkout, ImageReference(repository="127.0.0.1:5000/own/train", digest=OTHER))
    assert images.check(checkout).reference == f"127.0.0.1:5000/own/train@{OTHER}"
    assert not any(DIGEST.encode() in raw for raw in contents(checkout).values())


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "sky/odd.yaml",
            "'docker:.*'",
            "docker:ghcr.io/x/y:2",
            "sky/odd.yaml runs in docker:ghcr.io/x/y:2, but docker",
        ),
        ("sky/pretrain.yaml", "image_id: docker.*", "image_id: ami-12", "sky/pretrain.yaml runs in ami-12, but docker"),
        ("sky/pretrain.yaml", "image_id: docker.*", "cpus: 2", "sky/pretrain.yaml has no image_id"),
        ("docker/image.yaml", "repository: .*", "repository: ghcr.io/x/y", "runs in docker:ghcr.io/bafogpt/train"),
        ("docker/image.yaml", "digest: .*", "digest: sha256:12", "'sha256:12' is not a digest"),
        ("docker/image.yaml", "revision: .*", "revison: null", r"unknown key 'revison' \(did you mean 'revision'\?\)"),
        ("docker/image.yaml", "tag: .*", "tag: 1.0", "'tag' is 1.0, expected text"),
    ],
)
def test_a_checkout_that_disagrees_is_refused_by_file(
    checkout: Path, pinned: bool, file: str, old: str, new: str, says: str
):
    if pinned:
        images.pin(checkout, PINNED)
    images.check(checkout)
    path = checkout / file
    text, count = re.subn(old, new, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    with pytest.raises(BafoError, match=says) as caught:
        images.check(checkout)
    assert file in caught.value.message + caught.value.hint


def test_the_hint_of_a_check_mends_what_it_found(checkout: Path):
    """As after a pin that was killed half-way: some files are new, some old."""
    old = (checkout / "sky" / "odd.yaml").read_text()
    images.pin(checkout, PINNED)
    (checkout / "sky" / "odd.yaml").write_text(old)
    with pytest.raises(ConflictError) as caught:
        images.check(checkout)
    before = images.load(checkout)
    images.pin(checkout, ImageReference.parse(caught.value.hint.removeprefix("bafogpt image pin ")))
    assert images.check(checkout) == before


def test_constraints_that_changed_since_the_image_was_built_are_found_and_not_talked_away(checkout: Path):
    images.check(checkout)  # nothing is pinned: nothing to disagree with
    images.pin(checkout, PINNED)
    (checkout / "constraints.txt").write_text("torch==2.9.1\n")
    with pytest.raises(ConflictError, match=r"constraints\.txt is not the one that the image .* was built with"):
        images.check(checkout)
    images.pin(checkout, PINNED)  # the same image is still the one that was built with the old pins
    with pytest.raises(ConflictError, match=r"constraints\.txt"):
        images.check(checkout)
    images.pin(checkout, ImageReference(repository=REPOSITORY, digest=OTHER))
    images.check(checkout)


def test_with_a_revision_the_constraints_are_those_of_that_commit(checkout: Path):
    built = commit(checkout)
    (checkout / "constraints.txt").write_text("torch==2.9.1\n")
    images.pin(checkout, PINNED, revision=built[:12])
    assert images.load(checkout).revision == built
    with pytest.raises(ConflictError, match=r"constraints\.txt"):
        images.check(checkout)
    (checkout / "constraints.txt").write_text("torch==2.9.0\n")
    images.check(checkout)


@pytest.mark.parametrize("revision", ["0" * 40, "no-such-branch", "--all", ""])
def test_a_revision_that_this_checkout_does_not_have_is_refused_and_nothing_is_written(checkout: Path, revision: str):
    commit(checkout)
    before = contents(checkout)
    with pytest.raises(NotFoundError, match="rev-parse") as caught:
        images.pin(checkout, PINNED, revision=revision)
    assert caught.value.hint.startswith("git fetch")
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "sky/zz.yaml",
            "resources: {cpus: 2}\nrun: exec bafogpt job run jobs/demo.yaml\n",
            "sky/zz.yaml has no image_id",
        ),
        ("sky/zz.yaml", "resources: [\n", r"sky/zz\.yaml line 2"),
        ("jobs/zz.yaml", 'image_id: "docker:ghcr.io/bafogpt/\\\n  train:1"\n', r"jobs/zz\.yaml line 1: .* one line"),
        ("docker/image.yaml", "repository: x\n", r"docker/image\.yaml: 'tag' is missing"),
    ],
)
def test_a_file_that_cannot_be_pinned_stops_the_pin_before_anything_is_written(
    checkout: Path, file: str, text: str, says: str
):
    (checkout / file).write_text(text)
    before = contents(checkout)
    with pytest.raises(ConfigError, match=says):
        images.pin(checkout, PINNED)
    assert contents(checkout) == before


def test_when_one_file_cannot_be_written_the_others_get_their_old_content_back(checkout: Path):
    """A real limit of the kernel on the size of a file, met by the last task file after others were written."""
    large = f"{ODD}# {'x' * 20_000}\n"
    (checkout / "sky" / "zz.yaml").write_text(large)
    before = contents(checkout)
    script = (
        "import sys; from pathlib import Path; from bafogpt.jobs import image_ref; from bafogpt.launch import images\n"
        f"images.pin(Path(sys.argv[1]), image_ref.ImageReference.parse({str(PINNED)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(checkout)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert "DiskFullError" in done.stderr
    assert contents(checkout) == before
    images.pin(checkout, PINNED)
    assert DIGEST in (checkout / "sky" / "zz.yaml").read_text()


def test_an_installed_wheel_has_no_image_file(tmp_path: Path):
    for folder in ("jobs", "sky"):
        (tmp_path / "_project" / folder).mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"installed without docker/image\.yaml") as caught:
        images.checkout(tmp_path / "_project")
    assert caught.value.hint == "cd CHECKOUT of bafogpt"


def test_a_project_without_an_image_file_is_named(tmp_path: Path):
    for folder in ("jobs", "sky"):
        (tmp_path / folder).mkdir()
    with pytest.raises(NotFoundError, match=f"{tmp_path} has no docker/image.yaml"):
        images.checkout(tmp_path)
