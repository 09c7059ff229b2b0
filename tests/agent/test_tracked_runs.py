"""Runs whose metrics are sent on: a real supervisor, real trackers, a real store of MLflow, real files of W&B.

Trackers are killed, hang and crash; runs are killed and go on. No run is the worse for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bafogpt.agent.outcome import ExitOutcome
from bafogpt.agent.tracking import sidecar
from bafogpt.core import process, schema
from bafogpt.jobs import tracking
from bafogpt.jobs.job import Job
from bafogpt.runs import store as runs
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.conftest import S3
from tests.small_job import FAKE_WORKER, make_job

pytest.importorskip("mlflow", reason="needs bafogpt[tracking]")
pytest.importorskip("wandb", reason="needs bafogpt[tracking]")

Supervise = Callable[..., ExitOutcome]
HERE = Path(__file__).parent
KEY, PASSWORD = "planted-key-of-wandb-0123456789abcdef0123", "planted-password"


@pytest.fixture(autouse=True)
def environment(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker's process is told: where the bucket is, and keys that must not be seen again."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def slow_machine_job(**over: Any) -> Job:
    """The small job on a machine that is busy with importing the packages of two services."""
    return make_job(supervisor={"storage_timeout_s": 60}, **over)


def points(store: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of the only run in a folder that MLflow writes."""
    (run,) = store.glob("[0-9]*/*/metrics")
    lines = (run / tag).read_text().splitlines()
    return [(int(step), float(value)) for _, value, step in (line.split() for line in lines)]


def history(file: Path) -> list[dict[str, Any]]:
    """The rows in a file that W&B writes offline."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    scan = DataStore()
    scan.open_for_scan(str(file))
    rows = []
    while (data := scan.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


def trackers() -> list[psutil.Process]:
    """Every living process of a tracker, what its package has started included."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.status() != psutil.STATUS_ZOMBIE and sidecar.MARK in each.environ():
                found.append(each)
        except (psutil.Error, OSError):
            continue
    return found


def supervisor(job: Job, bucket: Bucket, folder: Path) -> subprocess.Popen[bytes]:
    """``bafogpt job run`` as a process of its own."""
    bucket.put("data/x/manifest.json", b"{}")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(schema.to_dict(job)))
    with folder.with_suffix(".txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(HERE / "node.py"), str(file), "run", str(folder), *FAKE_WORKER[1:]],
            env={**os.environ, "BAFOGPT_BUCKET": bucket.url},
            stdout=output,
            stderr=output,
        )


def all_of(store: Path, steps: int) -> bool:
    return [step for step, _ in points(store)] == list(range(1, steps + 1))


def test_a_run_that_is_killed_and_goes_on_is_one_run_with_each_step_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "mlruns"
    job = slow_machine_job(
        train={"tokens": 4000},
        tracking={
            "wandb": {"project": "zulu", "mode": "offline"},
            "mlflow": {"experiment": "zulu", "uri": f"file://{store}"},
            "drain_s": 60,
        },
    )
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.4")
    first = supervisor(job, bucket, tmp_path / "work")
    metrics = tmp_path / "work" / "metrics-0001.jsonl"
    said = (tmp_path / "work.txt").read_text
    assert process.wait_until(lambda: bool(list(store.glob("[0-9]*/*/metrics/train/loss"))), 180), said()
    assert process.wait_until(lambda: len(metrics.read_text().splitlines()) % 5 == 3, 60)  # three after a checkpoint
    below = [each for each in trackers() if each.pid != first.pid]
    first.kill()
    first.wait()
    psutil.wait_procs(below, timeout=10)
    done = len(metrics.read_text().splitlines())
    assert 0 < len(points(store)) <= done

    monkeypatch.setenv("FAKE_WORKER", "step_s=0.02")
    second = supervisor(job, bucket, tmp_path / "work")
    assert second.wait(180) == 0, said()
    record = RunStore(bucket).load("run")
    (restored,) = [each for each in RunStore(bucket).events("run") if each["event"] == "checkpoint_restored"]
    lines = [line for line in RunStore(bucket).metrics("run") if "loss" in line]
    twice = [step for step, times in Counter(line["step"] for line in lines).items() if times > 1]
    assert restored["step"] < done and twice, "some steps were done twice"
    assert all_of(store, 100), said()
    check_offline_file(bucket, tmp_path, tracking.tracker_run_id("run", record.created), runs.curve(lines))
    assert trackers() == []
    seen = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    seen += [each.path for each in bucket.list("") if KEY.encode() in bucket.get(each.path)]
    assert seen == []


def check_offline_file(bucket: Bucket, folder: Path, run: str, curve: list[dict[str, Any]]) -> None:
    """W&B has every step once, with its loss and the machine's numbers."""
    (folder / "offline.wandb").write_bytes(bucket.get(f"runs/run/wandb/run-{run}.wandb"))
    rows = [row for row in history(folder / "offline.wandb") if "train/loss" in row]
    assert [row["_step"] for row in rows] == list(range(1, 101))
    assert [row["train/loss"] for row in rows] == pytest.approx([line["loss"] for line in curve])
    assert "machine/cpu" in {key for row in rows for key in row}


def test_a_tracker_that_is_killed_is_started_again_and_no_step_is_missing_or_twice(
    supervise: Supervise, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "mlruns"
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.02")
    monkeypatch.setattr(sidecar, "PAUSES_S", (0.0,))
    killed: list[int] = []
    real = sidecar.Sidecar._read

    def read(self: Any, output: Any) -> None:
        """Kills the first tracker when it has sent something."""
        if not killed:
            process.wait_until(lambda: bool(list(store.glob("[0-9]*/*/metrics/train/loss"))), 120)
            killed.append(self._process.pid)
            self._process.kill()
        real(self, output)

    monkeypatch.setattr(sidecar.Sidecar, "_read", read)
    job = slow_machine_job(
        train={"tokens": 4000}, tracking={"mlflow": {"experiment": "zulu", "uri": f"file://{store}"}, "drain_s": 60}
    )
    assert supervise(job).state == "succeeded"
    assert all_of(store, 100)
    deaths = [each for each in RunStore(bucket).events("run") if each["event"] == "tracker_died"]
    assert [(each["service"], each["exit_code"]) for each in deaths] == [("mlflow", -9)]
    assert "[mlflow] the tracker was killed by signal 9; the run continues" in RunStore(bucket).logs("run")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("hang", "[mlflow] not everything was sent within 1 s"),
        ("crash", "[mlflow] the tracker ended with exit code 9; the run continues"),
        ("missing", "[mlflow] mlflow is not installed: nothing is sent"),
    ],
)
def test_a_tracker_that_hangs_or_crashes_takes_nothing_from_the_run(
    behaviour: str, words: str, supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sidecar, "COMMAND", (sys.executable, str(HERE / "fake_tracker.py")))
    monkeypatch.setenv("FAKE_TRACKER", behaviour)
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.1")
    job = slow_machine_job(tracking={"mlflow": {"experiment": "zulu", "uri": "https://nowhere.invalid"}, "drain_s": 1})
    assert supervise(job) == ExitOutcome("succeeded")
    store = RunStore(bucket)
    times = {each["event"]: float(each["time"]) for each in store.events("run")}
    assert times["run_ended"] - times["checkpoint_committed"] < 15  # drain_s, and what a slow machine takes
    assert [line["step"] for line in store.metrics("run")] == list(range(1, 21))
    assert words in store.logs("run")
    assert PASSWORD not in store.logs("run")
    assert trackers() == []


def test_a_server_that_is_not_there_is_said_and_the_run_is_as_ever(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.01")
    assert supervise(slow_machine_job(tracking={"mlflow": {"experiment": "zulu"}, "drain_s": 30})) == ExitOutcome(
        "succeeded"
    )
    said = RunStore(bucket).logs("run")
    assert "[mlflow] cannot send: MlflowException: API request to $MLFLOW_TRACKING_URI" in said
    assert re.search(r"\[mlflow\] 2[01] steps were not sent", said)  # the machine may have had a number before step 1
    assert not [each.path for each in bucket.list("") if PASSWORD.encode() in bucket.get(each.path)]


def test_a_tracker_and_the_packages_of_its_services_load_no_torch():
    script = (
        "import os, sys; os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'; "
        "import bafogpt.agent.tracking.process; before = "
        "{'torch', 'wandb', 'mlflow'} & set(sys.modules); import wandb; from mlflow import MlflowClient; "
        "print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() False"
