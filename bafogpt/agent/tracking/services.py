"""Weights & Biases and MLflow behind one small interface; each package is imported when its service is first used.

Both are given whole steps in ascending order. Which steps a service has, from an earlier process or another machine, is
asked of the service itself, so that no step is sent twice.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bafogpt.core import schema
from bafogpt.core.errors import BafoError
from bafogpt.jobs.tracking import Service, TrackedRun
from bafogpt.runs.store import RunState

if TYPE_CHECKING:
    import wandb
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "bafogpt.run"
"""The tag by which an MLflow run is found again."""
BATCH_METRICS = 1000
BATCH_PARAMS = 100
PARAM_LENGTH = 6000
"""What MLflow's servers accept: of each in one request, and characters of a parameter's value."""
HTTP_TIMEOUT_S = 20


@dataclass
class TaggedStep:
    """The values of one step, by tag; ``time`` is in seconds since the epoch."""

    step: int
    time: float
    values: dict[str, float] = field(default_factory=dict)

    def after(self, synced: Mapping[str, int]) -> TaggedStep:
        """The values that a service lacks which has each tag up to the step in ``synced``."""
        return TaggedStep(self.step, self.time, {t: v for t, v in self.values.items() if self.step > synced[t]})


class Tracker(Protocol):
    """One run at one service. Any exception of the service's package may be raised."""

    def begin(self) -> Mapping[str, int]:
        """Find or create the run, also after any error; the last step of each tag that the service has, -1 for none."""

    def send(self, steps: Sequence[TaggedStep]) -> None:
        """Send what the service lacks, in the order of steps."""

    def end(self, state: RunState) -> Path | None:
        """Report how the run ended. Returns a file to upload to the run's bucket, if there is one."""


class Wandb:
    """A run of Weights & Biases with the run's own id: an attempt after the first resumes it.

    The service takes no step below its last one. Offline, each process writes the whole run anew.
    """

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        assert run.config.wandb
        self._tracked, self._config, self._folder = run, run.config.wandb, folder
        self._run: wandb.Run | None = None
        self._last_step = -1

    def begin(self) -> Mapping[str, int]:
        if self._run is None:
            shutil.rmtree(self._folder / "wandb", ignore_errors=True)  # an earlier process's: sent, or stale
            self._run = self._init()
            self._last_step = self._run.step - 1
        return defaultdict(lambda: self._last_step)

    def _init(self) -> wandb.Run:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=self._tracked.id,
            name=self._tracked.name,
            resume="allow" if self._config.mode == "online" else None,
            mode=self._config.mode,
            dir=str(self._folder),
            config=self._tracked.job,
            allow_val_change=True,
            settings=wandb.Settings(
                # metrics only: no output, no code, nothing about this machine
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                # no plots in the run's log
                max_end_of_run_history_metrics=0,
                max_end_of_run_summary_metrics=0,
            ),
        )

    def send(self, steps: Sequence[TaggedStep]) -> None:
        assert self._run
        for each in steps:
            self._run.log({**each.values, "_timestamp": each.time}, step=each.step)
            self._last_step = each.step

    def end(self, state: RunState) -> Path | None:
        assert self._run
        import wandb

        self._run.finish(exit_code=0 if state == "succeeded" else 1)
        wandb.teardown()  # the end of the file is written before its helper process ends
        return next(self._folder.glob(f"wandb/offline-run-*/run-{self._tracked.id}.wandb"), None)


class Mlflow:
    """A run of MLflow, found by its tag. The server knows the last step of each metric."""

    STATUS: Mapping[RunState, str] = {"succeeded": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        assert run.config.mlflow
        self._tracked, self._config = run, run.config.mlflow
        self._client: MlflowClient | None = None
        self._id = ""

    def begin(self) -> Mapping[str, int]:
        client = self._client = self._client or self._connect()
        run = self._find(client)
        self._id = run.info.run_id
        if run.info.status != "RUNNING":
            client.update_run(self._id, status="RUNNING")
        self._send_params(client, run)
        return defaultdict(lambda: -1, {metric.key: metric.step for metric in run.data.to_proto().metrics})

    def _connect(self) -> MlflowClient:
        if not (self._config.uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise BafoError("MLFLOW_TRACKING_URI is not set", "--set tracking.mlflow.uri=https://…")
        # A request may have arrived although no answer came, so the package must not repeat it: we begin again.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_TIMEOUT_S))
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the user named a folder
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._config.uri)

    def _find(self, client: MlflowClient) -> Run:
        experiment = client.get_experiment_by_name(self._config.experiment)
        number = experiment.experiment_id if experiment else client.create_experiment(self._config.experiment)
        self._remove_empty_metrics(client.tracking_uri, number)
        found = client.search_runs([number], f"tags.`{RUN_TAG}` = '{self._tracked.id}'", max_results=1)
        tags = {RUN_TAG: self._tracked.id}
        return found[0] if found else client.create_run(number, run_name=self._tracked.name, tags=tags)

    def _remove_empty_metrics(self, uri: str, experiment: str) -> None:
        """Remove metric files without a value, which a killed tracker leaves in a folder store: MLflow cannot read a
        run that has one."""
        from mlflow.utils.file_utils import local_file_uri_to_path
        from mlflow.utils.uri import is_local_uri

        if not is_local_uri(uri):  # type: ignore[no-untyped-call]
            return
        store = Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]
        for tag in (store / experiment).glob(f"*/tags/{RUN_TAG}"):
            if tag.read_text(encoding="utf-8") == self._tracked.id:
                for file in (tag.parents[1] / "metrics").rglob("*"):
                    if file.is_file() and file.stat().st_size == 0:
                        file.unlink()

    def _send_params(self, client: MlflowClient, run: Run) -> None:
        """Send the job as parameters. They cannot be changed: after a change of the job the first ones stay."""
        from mlflow.entities import Param

        values = {key: str(value)[:PARAM_LENGTH] for key, value in schema.flatten(self._tracked.job).items()}
        new = [Param(key, value) for key, value in values.items() if key not in run.data.params]
        for start in range(0, len(new), BATCH_PARAMS):
            client.log_batch(self._id, params=new[start : start + BATCH_PARAMS], synchronous=True)

    def send(self, steps: Sequence[TaggedStep]) -> None:
        from mlflow.entities import Metric

        assert self._client
        metrics = [Metric(tag, v, int(each.time * 1000), each.step) for each in steps for tag, v in each.values.items()]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + BATCH_METRICS], synchronous=True)

    def end(self, state: RunState) -> Path | None:
        assert self._client
        self._client.set_terminated(self._id, self.STATUS[state])
        return None


TRACKERS: dict[Service, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}
