"""Job and task files: the project's own are right, and what is wrong with another is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bafogpt.core.errors import ConfigError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.jobs import job as jobs
from bafogpt.jobs import project, task
from bafogpt.launch import plan

ROOT = Path(__file__).parents[2]


def test_the_recipe_is_the_one_it_says_it_is():
    train = jobs.load(ROOT / "jobs" / "pretrain.yaml").train
    assert (train.model.network, train.data.sequence_length, train.batch_samples) == ("Gemma-2-2b", 2048, 128)
    assert train.steps == 762
    assert train.schedule.warmup_steps == round(0.05 * train.steps, -1)


def test_the_demo_is_the_recipe_but_for_its_size():
    demo, recipe = (jobs.load(ROOT / "jobs" / f"{name}.yaml") for name in ("demo", "pretrain"))
    assert demo.task == recipe.task
    assert demo.train.model.network == recipe.train.model.network
    assert demo.train.optimizer.weight_decay == recipe.train.optimizer.weight_decay
    assert demo.train.steps == 100


def test_an_assignment_beats_the_file():
    job = jobs.load(ROOT / "jobs" / "demo.yaml", ["train.seed=9", "train.model.overrides.n_layer=2"])
    assert job.train.seed == 9
    assert job.train.model.overrides["n_layer"] == 2
    assert job.train.model.overrides["n_embd"] == 128


def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("train: {tokens: 1_000_000, data: {path: d}, optimiser: {learning_rate: 1}}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: unknown key 'train.optimiser' \(did you mean 'optimizer'\?\)"):
        jobs.load(file)


def test_a_file_that_extends_itself_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        jobs.load(tmp_path / "a.yaml")


def test_an_unknown_job_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no job 'pretrian'.*did you mean 'pretrain'"):
        project.job_file("pretrian", cwd=ROOT)


def test_the_nearest_project_is_the_one_that_counts(tmp_path: Path):
    for folder in ("jobs", "sky", "deep/down"):
        (tmp_path / folder).mkdir(parents=True)
    assert project.root(tmp_path / "deep" / "down") == tmp_path
    assert project.root(Path("/")) == ROOT


@pytest.mark.parametrize(
    ("text", "parsed"), [("L40:4", ("L40", 4)), ("A10", ("A10", 1)), ("A100-80GB:8", ("A100-80GB", 8))]
)
def test_gpus_are_read(text: str, parsed: tuple[str, int]):
    assert task.parse_gpus(text) == parsed


@pytest.mark.parametrize("text", ["L40:four", "L40:", "L40:0", ":4", "L40:-1", "L40 4", ""])
def test_bad_gpus_are_refused(text: str):
    with pytest.raises(UsageError, match="--gpus"):
        task.parse_gpus(text)


def make(**options: object) -> plan.Plan:
    return plan.make("demo", Settings(bucket="s3://b", s3_endpoint=""), plan.LaunchOptions(**options))  # type: ignore[arg-type]


def test_a_plan_lays_the_launch_on_the_task_and_names_secrets_without_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_API_KEY", "planted-value")
    made = make(name="zulu-1", gpus="L40:2", infra="runpod", assignments=["train.seed=2"], env_names=["WANDB_API_KEY"])
    assert made.task["name"] == "zulu-1"
    assert made.task["resources"]["accelerators"] == "L40:2"
    assert made.task["resources"]["infra"] == "runpod"
    assert made.task["run"].strip() == "exec bafogpt job run jobs/demo.yaml --run zulu-1 --set train.seed=2"
    assert made.task["secrets"]["WANDB_API_KEY"] is None
    assert "planted-value" not in task.to_yaml(made.task)
    assert yaml.safe_load(task.to_yaml(made.task)) == made.task


def test_words_of_a_launch_cannot_break_out_of_the_run_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    made = make(name="zulu-1", assignments=["train.data.path=x; touch /pwned"])
    assert "'train.data.path=x; touch /pwned'" in made.task["run"]


@pytest.mark.parametrize("name", ["Zulu", "-a", "a-", "a_b", "", "a" * 49, "../x", "a b"])
def test_bad_run_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError):
        make(name=name) if name else plan.store.check_name(name)


def test_a_task_that_does_not_start_the_supervisor_is_refused(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("run: python train.py\n")
    with pytest.raises(ConfigError, match="does not start the supervisor"):
        task.load(file)


@pytest.mark.parametrize("file", sorted((ROOT / "sky").glob("*.yaml")), ids=lambda file: file.name)
def test_every_task_file_is_one_that_skypilot_accepts(file: Path):
    sky = pytest.importorskip("sky", reason="needs bafogpt[cloud]")
    parsed = sky.Task.from_yaml(str(file))
    assert parsed.setup is None
    assert "bafogpt job run" in parsed.run


def test_a_dry_run_prints_a_task_that_skypilot_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sky = pytest.importorskip("sky", reason="needs bafogpt[cloud]")
    monkeypatch.chdir(ROOT)
    made = make(name="zulu-1", gpus="A10", infra="lambda", assignments=["train.seed=2"])
    (tmp_path / "task.yaml").write_text(task.to_yaml(made.task))
    parsed = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    assert parsed.name == "zulu-1"
    (resources,) = parsed.resources
    assert resources.accelerators == {"A10": 1}
    assert resources.autostop_config.down


@pytest.mark.parametrize(
    ("gpus", "memory"), [("L40:4", "96+"), ("H100:1", "96+"), ("H100:8", "192+"), ("A10:5", "120+"), (None, "96+")]
)
def test_the_memory_asked_of_a_machine_follows_its_number_of_gpus(gpus: str | None, memory: str):
    file = task.load(ROOT / "sky" / "pretrain.yaml")

    laid = task.with_options(file, name="a", job_file="jobs/pretrain.yaml", gpus=gpus)

    assert laid["resources"]["memory"] == memory


def test_memory_stays_as_it_is_where_a_task_names_several_gpus():
    file = task.load(ROOT / "sky" / "pretrain.yaml")
    file["resources"]["accelerators"] = ["L40:4", "A100:2"]

    laid = task.with_options(file, name="a", job_file="jobs/pretrain.yaml", gpus="L40:8")

    assert laid["resources"]["memory"] == "96+"
