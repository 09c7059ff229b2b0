"""A recorded run is launched again: by its name alone, to the same end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bafogpt.cli import main as root
from bafogpt.core import schema
from bafogpt.reports import diff
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.reports import synthetic
from tests.small_job import make_job

ROOT = Path(__file__).parents[2]
IMAGE = f"ghcr.io/own/train:2@sha256:{'a' * 64}"


@pytest.fixture
def bucket_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket of a run on rented GPUs and, ``home``, of one on this machine."""
    monkeypatch.chdir(ROOT)
    run = synthetic.new(tmp_path)
    bucket = Bucket.open(f"file://{tmp_path}/bucket")
    bucket.put("data/x/manifest.json", b'{"digest": "blake3:aa"}')
    values: dict[str, Any] = {"job": schema.to_dict(make_job()), "data": {"digest": "blake3:aa"}}
    run.save(**values, name="away", infra="runpod", gpus="L40:4", image=IMAGE)
    run.save(**values, name="home", infra="local", image=None)
    return bucket.url


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """(the object that a dry rerun prints, what is said about it)."""
    assert root.main(["runs", "rerun", *words, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_where_on_what_and_in_which_image_are_those_of_the_run(
    bucket_of_one_run: str, capsys: pytest.CaptureFixture[str]
):
    found, said = dry(capsys, "away", "--bucket", bucket_of_one_run)
    assert found["infra"] == "runpod"
    assert found["task"]["resources"]["accelerators"] == "L40:4"
    assert found["task"]["resources"]["image_id"] == f"docker:{IMAGE}"
    assert f"bafogpt job run runs/away --run {found['name']}" in found["task"]["run"]
    assert "the code differs from that of away: then 0123456789+dirty" in said


def test_what_is_given_counts_and_a_run_of_this_machine_has_no_image(
    bucket_of_one_run: str, capsys: pytest.CaptureFixture[str]
):
    words = ["--name", "again", "--gpus", "H100:8", "--set", "train.seed=5", "--bucket", bucket_of_one_run]
    found, _ = dry(capsys, "away", *words)
    assert (found["name"], found["task"]["resources"]["accelerators"]) == ("again", "H100:8")
    assert "--set train.seed=5" in found["task"]["run"]
    for words in (["home"], ["away", "--infra", "local"]):
        found, _ = dry(capsys, *words, "--bucket", bucket_of_one_run)
        assert found["infra"] == "local"
        assert "BAFOGPT_IMAGE" not in found["task"]["envs"]


def test_wrong_words_are_two_lines_and_start_nothing(
    bucket_of_one_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert root.main(["runs", "rerun", "awya", "--bucket", bucket_of_one_run]) == 102
    assert capsys.readouterr().err.count("\n") == 2
    Bucket.open(bucket_of_one_run).put("data/x/manifest.json", b'{"digest": "blake3:bb"}')
    assert root.main(["runs", "rerun", "home", "--bucket", bucket_of_one_run]) == 1
    assert "is not what home was trained on" in capsys.readouterr().err
    assert not (tmp_path / "bucket" / "attempts").exists()


@pytest.mark.slow
def test_a_run_that_is_run_again_ends_with_the_very_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"file://{tmp_path}/bucket"
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BAFOGPT_BUCKET", url)
    monkeypatch.setenv("BAFOGPT_HOME", str(tmp_path / "home"))
    (tmp_path / "bucket").mkdir()
    assert root.main(["data", "prepare", "starter", "--tokenizer", "bytes", "--out", "data/starter"]) == 0
    small = ["--set", "train.tokens=8192", "--set", "supervisor.drill_kill_at_step=null"]
    assert root.main(["cloud", "launch", "demo", "--name", "first", *small]) == 0
    assert root.main(["runs", "rerun", "first", "--name", "second"]) == 0
    store = RunStore(Bucket.open(url))
    assert store.load("second").state == "succeeded"
    sections = {each.section for each in diff.differences(store, "first", "second") if each.section != "code"}
    assert sections <= {"results"}
    losses = [[line["loss"] for line in store.metrics(name) if "loss" in line] for name in ("first", "second")]
    assert len(losses[0]) == 8 and losses[0] == losses[1]
    assert root.main(["cloud", "down", "first"]) == root.main(["cloud", "down", "second"]) == 0
