"""Metrics sent on: the job's setting, rows of lines, and each step once at a service that fails in every way.

What real processes do is in test_tracked_runs.py.
"""

from __future__ import annotations

import collections
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent.tracking.process import RunReader, Sender, StepCollector
from bafogpt.agent.tracking.services import TaggedStep
from bafogpt.core.errors import AuthError, BafoError, ConfigError
from bafogpt.core.settings import Settings
from bafogpt.jobs import tracking
from bafogpt.jobs.tracking import MlflowConfig, TrackingConfig, WandbConfig
from bafogpt.launch import plan
from bafogpt.launch.engines.skypilot import task_config
from bafogpt.runs.store import RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles
from tests.small_job import make_job

ROOT = Path(__file__).parents[2]
BOTH = {"wandb": {"project": "zulu"}, "mlflow": {"experiment": "zulu", "uri": "https://mlflow.example.org"}}
ASKED = ["tracking.wandb.project=zulu", "tracking.mlflow.experiment=zulu"]


def test_it_is_off_unless_it_is_asked_for():
    config = make_job().tracking
    assert (config.services, tracking.variables(config), tracking.required_env(config)) == ((), [], {})
    assert make_job(tracking=BOTH).tracking.services == ("wandb", "mlflow")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"wandbd": {}}, r"unknown key 'tracking.wandbd' \(did you mean 'wandb'\?\)"),
        ({"wandb": {"project": "x", "modes": 1}}, r"unknown key 'tracking.wandb.modes' \(did you mean 'mode'\?\)"),
        ({"wandb": {}}, "'tracking.wandb.project' is missing"),
        (
            {"wandb": {"project": "x", "mode": "ofline"}},
            r"expected one of online, offline \(did you mean 'offline'\?\)",
        ),
        ({"mlflow": {"experiment": ""}}, "experiment is empty"),
        ({"mlflow": {"experiment": "x", "uri": "https://me:secret@host/"}}, "uri holds a name or password"),
        ({"drain_s": -1}, "drain_s is -1"),
    ],
)
def test_what_is_wrong_with_the_setting_is_said(values: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        make_job(tracking=values)
    assert "secret" not in str(caught.value)


def make(monkeypatch: pytest.MonkeyPatch, infra: str, assignments: Sequence[str] = ASKED) -> plan.Plan:
    monkeypatch.chdir(ROOT)
    settings = Settings(bucket="s3://b", s3_endpoint="")
    options = plan.LaunchOptions(name="zulu-1", infra=infra, gpus="L40:1", assignments=assignments)
    return plan.make("demo", settings, options)


def test_a_missing_package_is_said_before_a_run_of_this_machine_starts(monkeypatch: pytest.MonkeyPatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    with pytest.raises(BafoError, match="mlflow is not installed") as caught:
        make(monkeypatch, "local")
    assert caught.value.hint == "pip install 'bafogpt[tracking]'"
    make(monkeypatch, "runpod")  # the image has it


def test_keys_reach_a_rented_machine_by_name_and_must_be_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted")
    made = make(monkeypatch, "runpod")
    assert made.task["secrets"] == {
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")),
        **dict.fromkeys(("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD")),  # no …_USERNAME here
    }
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "MLFLOW_TRACKING_URI": "https://m"}
    with pytest.raises(AuthError, match=r"WANDB_API_KEY is not set, and the job needs it for tracking\.wandb"):
        task_config.secrets(made, environ)
    environ["WANDB_API_KEY"] = "planted"
    assert dict(task_config.secrets(made, environ)) == environ
    assert "WANDB_API_KEY" not in make(monkeypatch, "runpod", []).task["secrets"]
    assert "WANDB_API_KEY" not in make(monkeypatch, "runpod", [*ASKED, "tracking.wandb.mode=offline"]).task["secrets"]


def test_a_store_of_this_machine_is_refused_for_a_rented_one(monkeypatch: pytest.MonkeyPatch):
    for uri in ("sqlite:///x.db", "mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ConfigError, match="a rented machine cannot reach it"):
            make(monkeypatch, "runpod", ["tracking.mlflow.experiment=zulu", f"tracking.mlflow.uri={uri}"])


def test_values_of_keys_are_not_in_what_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert tracking.redact("it is true: https://me:secret@host/x") == "it is true: $MLFLOW_TRACKING_URI/x"


def test_a_name_that_is_used_again_is_another_run_for_a_service():
    first, again = (tracking.tracker_run_id("zulu", f"2026-02-02T0{hour}:00:00.000+00:00") for hour in (1, 2))
    assert first != again
    assert first.startswith("zulu-") and len(first) == len("zulu-") + 8


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"step": number, "time": 100.0 + number, "loss": loss}


def validation(number: int) -> dict[str, Any]:
    return {"step": number, "time": 100.5 + number, "validation_loss": 2.0}


def test_a_row_is_complete_when_the_next_step_has_begun():
    rows = StepCollector()
    rows.metrics(step(1))
    assert rows.take(whole_run=False) == []
    rows.metrics(validation(1))
    rows.metrics(step(2))
    assert rows.take(whole_run=False) == [TaggedStep(1, 101.0, {"train/loss": 1.0, "validation/loss": 2.0})]
    assert [row.step for row in rows.take(whole_run=True)] == [2]
    assert rows.take(whole_run=True) == []


def test_steps_that_were_done_again_are_there_once_and_a_validation_that_a_kill_prevented_is():
    rows = StepCollector()
    for line in (step(1), step(2), validation(2), step(3), step(4), step(3, 9.0), step(4, 9.0), validation(4), step(5)):
        rows.metrics(line)
    taken = rows.take(whole_run=True)
    assert [(row.step, row.values["train/loss"]) for row in taken] == [(number, 1.0) for number in (1, 2, 3, 4, 5)]
    assert [row.step for row in taken if "validation/loss" in row.values] == [2, 4]


def test_the_machines_numbers_go_into_the_open_row_and_the_first_count():
    rows = StepCollector()
    rows.system_stats({"step": 0, "time": 1, "cpu": 0.1})
    rows.metrics(step(1))
    for cpu in (0.2, 0.3):
        rows.system_stats({"step": 0, "time": 2, "cpu": cpu})  # measured before the step, told after it
    assert [(row.step, row.values["machine/cpu"]) for row in rows.take(whole_run=True)] == [(0, 0.1), (1, 0.2)]


class Store:
    """A service in memory that takes part of what it gets and then fails, as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.points: list[tuple[str, int]] = []

    def begin(self) -> Mapping[str, int]:
        return collections.defaultdict(
            lambda: -1, {tag: max(n for t, n in self.points if t == tag) for tag, _ in self.points}
        )

    def send(self, rows: Sequence[TaggedStep]) -> None:
        for row in rows:
            for tag in row.values:
                self.points.append((tag, row.step))
                if self.failures and len(self.points) % 3 == 0:
                    self.failures -= 1
                    raise TimeoutError("no answer, although it arrived")

    def end(self, state: RunState) -> None:
        return None


def test_what_may_have_arrived_is_looked_up_before_it_is_sent_again():
    said: list[str] = []
    store = Store(failures=4)
    sender = Sender(store, said.append)
    rows = [TaggedStep(number, 0.0, {"a": 1.0, "b": 2.0}) for number in range(1, 11)]
    tries = [sender.send(rows)] + [sender.send([]) for _ in range(4)]
    assert tries == [False, False, False, False, True]
    assert sorted(store.points) == sorted((tag, number) for number in range(1, 11) for tag in "ab")
    assert said == ["cannot send: TimeoutError: no answer, although it arrived", "sending again"]


def test_a_key_that_an_error_names_is_cut_out_before_the_error_is_cut_short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    said: list[str] = []

    class Refuses(Store):
        def begin(self) -> Mapping[str, int]:
            raise ValueError("x" * 475 + " planted-token is wrong")

    assert not Sender(Refuses(failures=0), said.append).send([])
    assert "planted" not in said[0]


def test_another_machine_reads_what_it_has_not_written_in_the_bucket(bucket: Bucket, tmp_path: Path):
    run = RunStore(bucket).folder("run")

    def lines(*steps: int) -> bytes:
        return "".join(json.dumps(step(number)) + "\n" for number in steps).encode()

    run.put("metrics/0001-00000.jsonl", lines(1, 2))
    run.put("metrics/0001-00001.jsonl", lines(3))
    run.put("metrics/0002-00000.jsonl", lines(40))  # older than what is on this disk
    run.put("metrics/0001-n1-00000.jsonl", lines(50))  # another node's
    trainer_files = TrainerFiles(tmp_path)
    trainer_files.metrics(2).write_bytes(lines(3, 4))
    trainer_files.metrics(3).write_bytes(lines(4, 5) + b'{"step": 6, "lo')
    rows = StepCollector()
    reader = RunReader(trainer_files, 3, run, pytest.fail)
    reader.read_into(rows)
    with trainer_files.metrics(3).open("ab") as file:
        file.write(b'ss": 1.0}\n')
    reader.read_into(rows)
    assert [row.step for row in rows.take(whole_run=True)] == [1, 2, 3, 4, 5, 6]


def mlflow(tmp_path: Path, uri: str) -> Callable[[], Any]:
    """``begin()`` of a new process, as far as MLflow is concerned."""
    trackers = pytest.importorskip("bafogpt.agent.tracking.services")
    pytest.importorskip("mlflow", reason="needs bafogpt[tracking]")
    config = TrackingConfig(mlflow=MlflowConfig(experiment="zulu", uri=uri))
    values = {"name": "run", "id": "run-1", "attempt": 1, "bucket": "", "job": {"train": {"seed": 1, "tokens": 9}}}
    return lambda: trackers.Mlflow(tracking.TrackedRun(service="mlflow", config=config, **values), tmp_path)


def test_mlflow_says_what_it_has_of_each_metric_and_finds_the_run_by_its_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    new = mlflow(tmp_path, uri)
    first, second = new(), new()
    assert first.begin() == {}
    first.send(
        [TaggedStep(1, 1000.0, {"train/loss": 3.0, "machine/cpu": 0.5}), TaggedStep(2, 1001.0, {"train/loss": 2.0})]
    )
    first.end("stopped")
    assert second.begin() == {"train/loss": 2, "machine/cpu": 1}
    second.send([TaggedStep(3, 1002.0, {"train/loss": 1.0})])
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("zulu").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "run",
        "RUNNING",
        {"train.seed": "1", "train.tokens": "9"},
    )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [
        (1, 3.0, 1_000_000),
        (2, 2.0, 1_001_000),
        (3, 1.0, 1_002_000),
    ]
    second.end("succeeded")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_metric_that_a_killed_tracker_left_empty_hides_no_others(tmp_path: Path):
    store = tmp_path / "mlruns"
    new = mlflow(tmp_path, f"file://{store}")
    first, second = new(), new()
    first.begin()
    first.send([TaggedStep(1, 1000.0, {"train/loss": 3.0, "speed/tokens_per_s": 5.0})])
    (file,) = store.glob("*/*/metrics/speed/tokens_per_s")
    file.write_text("")  # killed between making the file and writing to it
    assert second.begin() == {"train/loss": 1}
    second.send([TaggedStep(1, 1000.0, {"speed/tokens_per_s": 5.0})])
    assert new().begin() == {"train/loss": 1, "speed/tokens_per_s": 1}


def test_wandb_goes_on_where_its_server_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The one part with a stand-in: what ``wandb.init`` returns when it resumes a run that has steps 0 to 6."""
    wandb = pytest.importorskip("wandb", reason="needs bafogpt[tracking]")
    from bafogpt.agent.tracking.services import Wandb

    logged: list[int] = []
    asked: dict[str, Any] = {}

    class Resumed:
        step = 7

        def log(self, values: dict[str, float], step: int) -> None:
            logged.append(step)

    monkeypatch.setattr(wandb, "init", lambda **words: asked.update(words) or Resumed())
    config = TrackingConfig(wandb=WandbConfig(project="zulu", entity="team"))
    run = tracking.TrackedRun(
        service="wandb", config=config, name="run", id="run-1", attempt=2, bucket="", job={"a": 1}
    )
    sender = Sender(Wandb(run, tmp_path), pytest.fail)
    assert sender.send([TaggedStep(number, 0.0, {"train/loss": 1.0}) for number in range(4, 10)])
    assert logged == [7, 8, 9]
    assert (asked["id"], asked["resume"], asked["mode"], asked["entity"]) == ("run-1", "allow", "online", "team")
