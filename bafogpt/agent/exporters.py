"""What goes along with a run, for people: its checkpoints on the Hub, its metrics at tracking services.

A run neither waits for these while it trains nor ends by them.
"""

from __future__ import annotations

import time

from bafogpt.agent.hub_publisher import DRAIN_S, HubPublisher
from bafogpt.agent.recorder import Recorder
from bafogpt.agent.tracking.sidecar import Sidecar
from bafogpt.core import schema, settings
from bafogpt.jobs.job import Job
from bafogpt.jobs.tracking import TrackedRun, tracker_run_id
from bafogpt.runs.store import RunState
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles


class Exporters:
    """The publisher and the trackers of one attempt, as far as the job asks for them."""

    def __init__(self, job: Job, bucket: Bucket, trainer_files: TrainerFiles, recorder: Recorder) -> None:
        self._recorder = recorder
        self._config = job.supervisor
        self._drain_s = job.tracking.drain_s
        record = recorder.record
        self._publisher: HubPublisher | None = None
        if job.supervisor.publish_to:
            folder = bucket.child(f"runs/{record.name}/checkpoints")
            self._publisher = HubPublisher(folder, job.supervisor.publish_to, settings.load(), recorder.event)
        self._sidecars = [
            Sidecar(
                TrackedRun(
                    service=service,
                    config=job.tracking,
                    name=record.name,
                    id=tracker_run_id(record.name, record.created),
                    attempt=recorder.attempt,
                    bucket=bucket.url,
                    job=schema.to_dict(job),
                ),
                trainer_files.folder,
                recorder.log,
                recorder.event,
            )
            for service in job.tracking.services
        ]

    def start(self) -> None:
        if self._publisher:
            self._publisher.start()
        for sidecar in self._sidecars:
            sidecar.start()

    def committed(self, step: int) -> None:
        """A checkpoint is in the bucket, and may be published."""
        if self._publisher:
            self._publisher.offer(step)

    def finish(self, state: RunState, left_s: float) -> None:
        """Wait for the last publication, long after success (``left_s`` of the run's limits allowing), no longer than
        the grace period otherwise; and for the last metrics to be sent on, which never takes long."""
        for sidecar in self._sidecars:
            sidecar.tell(state)
        deadline = time.monotonic() + self._drain_s
        if self._publisher:
            self._recorder.log(f"publishing on {self._config.publish_to}")
            patience = min(DRAIN_S, max(self._config.grace_s, left_s))
            if not self._publisher.close(patience if state == "succeeded" else self._config.grace_s):
                self._recorder.log("the last publication did not end in time")
        for sidecar in self._sidecars:
            if not sidecar.close(max(0.0, deadline - time.monotonic())):
                self._recorder.event("tracking_unfinished", service=sidecar.service)
                self._recorder.log(f"[{sidecar.service}] not everything was sent within {self._drain_s:g} s")
