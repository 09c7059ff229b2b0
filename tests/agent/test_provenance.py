"""What a run was made of is in its record; a recorded job runs again only on what it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bafogpt.agent import provenance
from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.jobs import resolve
from bafogpt.jobs import task as tasks
from bafogpt.launch import code_snapshot
from bafogpt.launch import plan as plans
from bafogpt.launch.plan import LaunchOptions
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from tests.small_job import make_job

ROOT = Path(__file__).parents[2]
MANIFEST = {"digest": "blake3:aa", "created": "2026-01-01", "tokenizer": {"digest": "blake3:bb"}}
GPU = {"name": "NVIDIA L40", "driver": "550.54.15"}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A bucket on disk with the dataset of :func:`make_job`, seen from the checkout."""
    monkeypatch.chdir(ROOT)
    config = Settings(bucket=f"file://{tmp_path}/bucket", s3_endpoint="", home=str(tmp_path / "home"))
    Bucket.open(config.bucket, config).create()
    Bucket.open(config.bucket, config).put("data/x/manifest.json", json.dumps(MANIFEST).encode())
    return config


def ran(settings: Settings, tmp_path: Path, name: str = "first", launch: LaunchInfo | None = None) -> RunRecord:
    """The record of a run that has been claimed."""
    bucket = Bucket.open(settings.bucket, settings)
    with claim(make_job(), name, bucket, tmp_path / "work", launch or LaunchInfo()):
        pass
    return RunStore(bucket).load(name)


def test_the_record_of_a_new_run_names_data_versions_and_place(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cluster = {"cluster_name": "c", "cloud": "runpod", "region": "CA", "zone": "CA-MTL-1"}
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps(cluster))
    monkeypatch.setenv("BAFOGPT_GPUS", "L40:4")
    record = ran(settings, tmp_path, launch=LaunchInfo(infra="runpod", price_per_hour=4.56, git="abc+dirty.0123"))
    assert record.data == {"digest": "blake3:aa", "created": "2026-01-01", "tokenizer": "blake3:bb"}
    assert record.versions["obstore"] == importlib.metadata.version("obstore")
    assert record.gpus == "L40:4"
    (machine,) = record.machines
    assert {"attempt": 1, "cloud": "runpod", "region": "CA", "zone": "CA-MTL-1", "price_per_hour": 4.56}.items() <= (
        machine.items()
    )
    assert machine["host"] == record.host


def test_each_attempt_adds_its_own_place_and_keeps_the_earlier_ones(settings: Settings, tmp_path: Path):
    ran(settings, tmp_path, launch=LaunchInfo(infra="runpod", price_per_hour=4.56))
    record = ran(settings, tmp_path, launch=LaunchInfo(infra="lambda", price_per_hour=1.29))
    told = [(each["attempt"], each["infra"], each["price_per_hour"]) for each in record.machines]
    assert told == [(1, "runpod", 4.56), (2, "lambda", 1.29)]


def test_the_gpus_of_a_place_are_those_that_the_machine_shows():
    machine = provenance.machine(1, infra="runpod", price_per_hour=0, environment={}, gpus=[GPU] * 4)
    assert (machine["gpu"], machine["gpus"], machine["driver"]) == ("NVIDIA L40", 4, "550.54.15")


@pytest.mark.parametrize("words", ["{broken", "[1]", ""])
def test_what_skypilot_says_of_the_cluster_may_be_anything(words: str):
    machine = provenance.machine(1, infra="x", price_per_hour=0, environment={"SKYPILOT_CLUSTER_INFO": words}, gpus=[])
    assert (machine["cloud"], machine["region"]) == ("", "")


def test_versions_are_found_without_importing_what_they_are_of():
    script = (
        "import sys; from bafogpt.agent import provenance; found = provenance.versions(); "
        "assert not {'torch', 'litgpt', 'lightning', 'sky', 'boto3'} & set(sys.modules); print(found['torch'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == importlib.metadata.version("torch")


def test_the_cuda_version_is_that_of_torchs_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert provenance.versions()["cuda"] == "12.8"


def test_a_recorded_job_becomes_the_same_plan_without_its_job_file(settings: Settings, tmp_path: Path):
    record = ran(settings, tmp_path)
    plan = plans.make("runs/first", settings, LaunchOptions(infra="runpod", gpus="L40:2"))
    assert schema.to_dict(plan.job) == record.job
    assert plan.name.startswith("first-")
    assert plan.task["run"].strip() == f"exec bafogpt job run runs/first --run {plan.name}"
    assert plan.task["envs"]["BAFOGPT_GPUS"] == "L40:2"
    assert tasks.accelerators(plan.task) == ("L40", 2)


def test_what_is_set_is_laid_on_the_recorded_job_here_and_on_the_machine(settings: Settings, tmp_path: Path):
    ran(settings, tmp_path)
    plan = plans.make("runs/first", settings, LaunchOptions(name="second", assignments=["train.seed=9"]))
    assert plan.job.train.seed == 9
    assert plan.task["run"].strip().endswith("--set train.seed=9")
    with pytest.raises(ConfigError, match=r"train\.sead"):
        plans.make("runs/first", settings, LaunchOptions(assignments=["train.sead=9"]))


def test_a_dataset_that_has_changed_is_refused_unless_it_is_named(settings: Settings, tmp_path: Path):
    ran(settings, tmp_path)
    bucket = Bucket.open(settings.bucket, settings)
    bucket.put("data/x/manifest.json", json.dumps({**MANIFEST, "digest": "blake3:cc"}).encode())
    with pytest.raises(CorruptError, match=r"blake3:cc, was blake3:aa"):
        resolve.find("runs/first", settings)
    assert resolve.find("runs/first", settings, ["train.data.path=data/x"]).job.train.data.path == "data/x"
    bucket.delete("data/x/manifest.json")
    with pytest.raises(NotFoundError, match="the dataset of first is no longer at"):
        resolve.find("runs/first", settings)


def test_a_run_that_is_not_there_is_named_with_the_nearest(settings: Settings, tmp_path: Path):
    ran(settings, tmp_path)
    with pytest.raises(RunNotFoundError, match=r"no run 'frist'.*first"):
        resolve.find("runs/frist", settings)


def test_the_code_is_compared_with_the_checkout(tmp_path: Path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@x", *words], cwd=tmp_path, check=True)

    def run_of(code: str) -> RunRecord:
        return RunRecord(name="r", trainer="pretrain", state="running", created="", updated="", git=code)

    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = str(code_snapshot.current_version(tmp_path))
    assert code_snapshot.describe_change(run_of(clean), tmp_path) == ""
    (tmp_path / "a.py").write_text("2")
    changed = str(code_snapshot.current_version(tmp_path))
    assert code_snapshot.describe_change(run_of(changed), tmp_path) == ""
    assert f"then {clean[:10]}, here {clean[:10]}+dirty" in code_snapshot.describe_change(run_of(clean), tmp_path)
    (tmp_path / "a.py").write_text("3")
    assert code_snapshot.describe_change(run_of(changed), tmp_path) != ""
    assert "unknown" in code_snapshot.describe_change(run_of(""), tmp_path)
