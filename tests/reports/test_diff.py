"""Two runs side by side: what went in, where, and what came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bafogpt.cli import main as root
from bafogpt.core.errors import RunNotFoundError
from bafogpt.reports import diff
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.reports import synthetic

JOB = {"train": {"seed": 1, "optimizer": {"learning_rate": 2e-4}, "model": {"overrides": {}}}}
PLACE = {"attempt": 1, "host": "a", "infra": "runpod", "region": "CA", "gpu": "NVIDIA L40", "gpus": 4}


def planted(folder: Path, **changes: object) -> RunStore:
    """Run ``a`` of one record, and run ``b`` of the same with ``changes``."""
    run = synthetic.drilled(folder)
    run.save(name="a", job=JOB, machines=[PLACE], data={"digest": "blake3:aa"})
    run.save(**{"name": "b", "job": JOB, "machines": [PLACE], "data": {"digest": "blake3:aa"}, **changes})
    return run.store


def told(store: RunStore) -> dict[str, tuple[object, object]]:
    return {f"{each.section}.{each.key}": (each.a, each.b) for each in diff.differences(store, "a", "b")}


def test_runs_that_are_the_same_differ_in_nothing(tmp_path: Path):
    assert told(planted(tmp_path)) == {}


def test_every_section_is_told_with_both_values(tmp_path: Path):
    job = {"train": {**JOB["train"], "seed": 2, "model": {"overrides": {"n_layer": 4}}}}
    store = planted(
        tmp_path,
        job=job,
        data={"digest": "blake3:cc"},
        git="f" * 40,
        image="ghcr.io/own/train:2",
        versions={"bafogpt": "0.1.0", "python": "3.12.1", "torch": "2.13.0"},
        machines=[PLACE, {**PLACE, "attempt": 2, "region": "US"}],
        state="stopped",
        step=60,
    )
    assert told(store) == {
        "job.train.seed": (1, 2),
        "job.train.model.overrides.n_layer": (None, 4),
        "data.digest": ("blake3:aa", "blake3:cc"),
        "code.git": ("0123456789abcdef0123456789abcdef01234567+dirty", "f" * 40),
        "image.image": (None, "ghcr.io/own/train:2"),
        "versions.python": ("3.11.9", "3.12.1"),
        "versions.torch": (None, "2.13.0"),
        "machine.region": ("CA", "US"),
        "results.state": ("succeeded", "stopped"),
        "results.steps": (120, 60),
    }


def test_results_are_those_of_the_reports(tmp_path: Path):
    store = planted(tmp_path)
    trained = synthetic.drilled(tmp_path / "other")
    folder, name = trained.store.folder(synthetic.NAME), synthetic.NAME
    for info in folder.list("metrics/"):
        store.folder("b").put(info.path, folder.get(info.path))
    found = {each.key: each for each in diff.differences(store, "a", "b") if each.section == "results"}
    summary = synthetic.summarise(trained)
    assert (found["final_loss"].a, found["final_loss"].b) == (None, summary.final_loss)
    assert found["tokens_per_s"].b == summary.tokens_per_s
    assert found["tokens"].b == summary.tokens and found["tokens"].a == 0
    assert name != "b"


def test_a_change_is_a_share_of_the_first_and_there_is_none_from_nothing():
    def change(a: object, b: object) -> float | None:
        return diff.Difference(section="results", key="k", a=a, b=b).change

    assert change(2.0, 3.0) == pytest.approx(0.5)
    assert change(4, 1) == pytest.approx(-0.75)
    assert change(0, 1) is change(None, 1) is change("x", "y") is change(True, False) is None


def test_an_unknown_run_is_named(tmp_path: Path):
    with pytest.raises(RunNotFoundError, match="no run 'c'"):
        diff.differences(planted(tmp_path), "a", "c")


def test_the_command_prints_a_table_objects_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = planted(tmp_path, job={"train": {**JOB["train"], "seed": 2}})
    bucket = ["--bucket", store.bucket.url.removesuffix("/runs")]
    assert root.main(["runs", "diff", "a", "b", *bucket]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["WHAT", "A:", "A", "B:", "B", "CHANGE"]
    assert line.split() == ["job.train.seed", "1", "2", "+100.0%"]
    assert root.main(["runs", "diff", "a", "b", "--json", *bucket]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["differences"].pop("job") == {"train.seed": [1, 2]}
    assert set(map(str, value["differences"].values())) == {"{}"}
    assert root.main(["runs", "diff", "a", "b", "-q", *bucket]) == 0
    assert capsys.readouterr().out == "job.train.seed\n"
    assert root.main(["runs", "diff", "a", "a", *bucket]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a and a do not differ\n")


def test_a_bucket_without_runs_is_not_an_error_of_its_own(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunNotFoundError, match="no run 'a'"):
        diff.differences(RunStore(Bucket.open(f"file://{tmp_path}/empty")), "a", "b")
