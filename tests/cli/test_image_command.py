"""``bafogpt image`` and ``cloud launch --image`` as a person meets them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REPOSITORY = "ghcr.io/bafogpt/train"
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this checkout's own files, as far as they are about images; the test stands in a folder below it."""
    root = tmp_path / "checkout"
    for folder in ("sky", "jobs"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "docker").mkdir()
    for file in ("docker/image.yaml", "constraints.txt"):
        shutil.copy(ROOT / file, root / file)
    monkeypatch.chdir(root / "docker")
    return root


def test_pin_check_and_show_tell_the_same(cli, checkout: Path):
    ran = cli("image", "pin", f"{REPOSITORY}:sha-1@{DIGEST}")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"pinned {REPOSITORY}@{DIGEST} in sky/")
    assert ran.out.endswith("docker/image.yaml\n")
    assert cli("image", "check").out == (f"every task runs in {REPOSITORY}@{DIGEST}, built with this constraints.txt\n")
    shown = json.loads(cli("image", "show", "--json").out)
    assert shown["image"] == cli("image", "show", "-q").out.strip() == f"{REPOSITORY}@{DIGEST}"
    assert (shown["tag"], shown["digest"], shown["revision"]) == ("sha-1", DIGEST, None)
    assert json.loads(cli("image", "check", "--json").out) == {"image": shown["image"], "pinned": True}
    assert cli("image", "pin", shown["image"]).out == f"{shown['image']} is pinned already\n"
    assert json.loads(cli("image", "show", "--json").out) == shown  # the tag is still known


def test_a_push_hands_its_digest_over_in_a_file(cli, checkout: Path):
    (checkout / "digest.txt").write_text(f"{DIGEST}\n")
    ran = cli("image", "pin", f"{REPOSITORY}:sha-1", "--digest-file", str(checkout / "digest.txt"), "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["image"] == f"{REPOSITORY}@{DIGEST}"
    for path in (checkout / "sky").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["resources"]["image_id"] == f"docker:{REPOSITORY}@{DIGEST}"


def test_a_checkout_without_a_pinned_image_is_in_order_and_says_so(cli, checkout: Path):
    path = checkout / "docker" / "image.yaml"
    path.write_text(f"{{repository: {REPOSITORY}, tag: t, digest: null, constraints: null, revision: null}}\n")
    for task in (checkout / "sky").glob("*.yaml"):
        task.write_text(re.sub("docker:.*", f"docker:{REPOSITORY}:t", task.read_text()))
    ran = cli("image", "check")
    assert (ran.code, ran.out) == (0, f"every task runs in {REPOSITORY}:t; no image has been pinned yet\n")


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        ((), 2, "no image to pin", f"bafogpt image pin {REPOSITORY}@sha256:…"),
        (
            (f"{REPOSITORY}:0.1.0",),
            2,
            f"{REPOSITORY}:0.1.0 has no digest: a tag can move",
            f"bafogpt image pin {REPOSITORY}:0.1.0@sha256:…",
        ),
        (
            (f"{REPOSITORY}@sha256:12",),
            2,
            f"image '{REPOSITORY}@sha256:12': 'sha256:12' is not a digest: sha256: and 64 lowercase hexadecimal digits",
            f"{REPOSITORY}@sha256:…",
        ),
        (
            (REPOSITORY, "--digest-file", "none.txt"),
            1,
            "--digest-file none.txt: no such file",
            "./scripts/image push REF --digest-file none.txt",
        ),
    ],
)
def test_what_cannot_be_pinned_gets_two_lines_and_changes_nothing(cli, checkout, words, code, error, hint):
    before = {path: path.read_bytes() for path in checkout.rglob("*.yaml")}
    ran = cli("image", "pin", *words)
    assert (ran.code, ran.out, ran.err) == (code, "", f"error: {error}\n hint: {hint}\n")
    assert {path: path.read_bytes() for path in checkout.rglob("*.yaml")} == before


def test_a_check_that_fails_names_the_file_and_what_to_type(cli, checkout: Path):
    cli("image", "pin", f"{REPOSITORY}@{DIGEST}")
    path = checkout / "sky" / "pretrain.yaml"
    path.write_text(path.read_text().replace(f"{REPOSITORY}@{DIGEST}", "ghcr.io/x/y:1"))
    ran = cli("image", "check")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "error: sky/pretrain.yaml runs in docker:ghcr.io/x/y:1, "
        f"but docker/image.yaml has docker:{REPOSITORY}@{DIGEST}\n"
        f" hint: bafogpt image pin {REPOSITORY}@{DIGEST}\n"
    )


def test_a_launch_may_name_another_image_and_tells_it_to_the_run(cli, checkout: Path):
    launch = ("cloud", "launch", "demo", "--infra", "runpod", "--dry-run", "--json")
    task = json.loads(cli(*launch, "--image", f"docker:localhost/bafogpt/train@{DIGEST}").out)["task"]
    assert task["resources"]["image_id"] == task["envs"]["BAFOGPT_IMAGE"] == f"docker:localhost/bafogpt/train@{DIGEST}"
    ran = cli(*launch, "--image", "Train")
    assert (ran.code, ran.out) == (2, "")
    here = cli("cloud", "launch", "demo", "--dry-run", "--image", "ghcr.io/x/y:1")
    assert (
        here.err
        == "error: --image ghcr.io/x/y:1: a job on this machine runs without a container\n hint: --infra runpod\n"
    )
