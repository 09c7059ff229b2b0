"""The image of a launch: from its options over the task's variables to run.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.core.errors import UsageError
from bafogpt.core.settings import Settings
from bafogpt.jobs import task as tasks
from bafogpt.launch import plan
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.small_job import make_job

ROOT = Path(__file__).parents[2]
DIGEST = f"sha256:{'a' * 64}"
LABELS = {"revision": "0" * 40, "constraints": f"sha256:{'c' * 64}", "base": "debian@sha256:…"}


def make(infra: str, **options: str) -> plan.Plan:
    chosen = plan.LaunchOptions(name="run", infra=infra, **options)  # type: ignore[arg-type]
    return plan.make("demo", Settings(bucket="s3://b", s3_endpoint=""), chosen)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("BAFOGPT_IMAGE", "BAFOGPT_INFRA"):
        monkeypatch.delenv(name, raising=False)


def record_of(bucket: Bucket, tmp_path: Path, place: LaunchInfo) -> dict[str, object]:
    """What run.json says once a run has been claimed in that place."""
    bucket.put("data/x/manifest.json", b"{}")
    with claim(make_job(), "run", bucket, tmp_path / "work", place):
        record: dict[str, object] = json.loads(bucket.get("runs/run/run.json"))
    return record


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        (f"ghcr.io/own/train:sha-1@{DIGEST}", DIGEST),
        (f"ghcr.io/own/train@{DIGEST}", DIGEST),
        ("ghcr.io/own/train:2", None),
    ],
)
def test_the_image_of_the_launch_is_in_run_json_and_its_digest_when_it_was_named_by_one(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, digest: str | None
):
    made = make("runpod", image=image)
    assert made.task["resources"]["image_id"] == f"docker:{image}"
    for name, value in made.task["envs"].items():
        monkeypatch.setenv(name, value)
    labels = tmp_path / "image.json"
    labels.write_text(json.dumps(LABELS))
    record = record_of(bucket, tmp_path, LaunchInfo.from_environment(labels))
    assert (record["image"], record["image_digest"], record["image_labels"]) == (image, digest, LABELS)
    assert RunStore(bucket).load("run").image == image


def test_without_a_word_at_launch_the_image_is_the_task_files(monkeypatch: pytest.MonkeyPatch):
    made = make("runpod")
    assert made.task["envs"]["BAFOGPT_IMAGE"] == made.task["resources"]["image_id"]
    assert made.task["resources"]["image_id"].startswith("docker:")


def test_a_local_run_has_no_image_whatever_the_variable_says(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make("local")
    assert "BAFOGPT_IMAGE" not in made.task["envs"]
    monkeypatch.setenv("BAFOGPT_IMAGE", f"docker:ghcr.io/own/train@{DIGEST}")
    for name, value in made.task["envs"].items():
        monkeypatch.setenv(name, value)
    record = record_of(bucket, tmp_path, LaunchInfo.from_environment(tmp_path / "none.json"))
    assert (record["image"], record["image_digest"], record["image_labels"]) == (None, None, {})
    with pytest.raises(UsageError, match="runs without a container"):
        make("local", image="ghcr.io/own/train:2")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", '{"revision": 1}'])
def test_labels_that_cannot_be_read_are_no_reason_not_to_train(tmp_path: Path, text: str):
    labels = tmp_path / "image.json"
    labels.write_text(text, errors="surrogateescape")
    assert LaunchInfo.from_environment(labels).image_labels == {}


@pytest.mark.parametrize(
    ("resources", "found"),
    [
        ({"image_id": "docker:a"}, "docker:a"),
        ({"image_id": {"us-east-1": "docker:a", "us-west-2": "docker:a"}}, "docker:a"),
        ({"image_id": {"us-east-1": "docker:a", "us-west-2": "docker:b"}}, None),
        ({"any_of": [{"image_id": "docker:a"}, {"cpus": 2}]}, "docker:a"),
        ({"ordered": [{"image_id": "docker:a"}, {"image_id": "docker:b"}]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_image_of_a_task_is_known_when_there_is_one(resources: object, found: str | None):
    assert tasks.image_id({"resources": resources}) == found
