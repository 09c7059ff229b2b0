"""Copies of a run elsewhere: its checkpoints on the Hub, its metrics at tracking services.

A run does not wait for them while it trains, and does not fail because of them.
"""

from __future__ import annotations

import time

from bafogpt.agent.attempt import Attempt
from bafogpt.agent.hub_publisher import DRAIN_S, HubPublisher
from bafogpt.agent.tracking.sidecar import Sidecar
from bafogpt.core import schema, settings
from bafogpt.jobs.tracking import TrackedRun, tracker_run_id
from bafogpt.runs.store import RunState


class Exporters:
    """The Hub publisher and the trackers of one attempt, as far as the job configures them."""

    def __init__(self, attempt: Attempt) -> None:
        self._config = attempt.config
        self._drain_s = attempt.job.tracking.drain_s
        self._recorder = recorder = attempt.recorder
        self._publisher: HubPublisher | None = None
        if target := attempt.config.publish_to:
            self._publisher = HubPublisher(attempt.run.child("checkpoints"), target, settings.load(), recorder.event)
        self._sidecars = [
            Sidecar(
                TrackedRun(
                    service=service,
                    config=attempt.job.tracking,
                    name=attempt.name,
                    id=tracker_run_id(attempt.name, recorder.record.created),
                    attempt=attempt.number,
                    bucket=attempt.bucket.url,
                    job=schema.to_dict(attempt.job),
                ),
                attempt.trainer_files.folder,
                recorder.log,
                recorder.event,
            )
            for service in attempt.job.tracking.services
        ]

    def start(self) -> None:
        if self._publisher:
            self._publisher.start()
        for sidecar in self._sidecars:
            sidecar.start()

    def committed(self, step: int) -> None:
        """A checkpoint is in the bucket and may be published."""
        if self._publisher:
            self._publisher.publish(step)

    def finish(self, state: RunState, left_s: float) -> None:
        """Wait for the last publication and the last metrics.

        After success the publication may take long, within the ``left_s`` seconds of the run's limits; otherwise no
        longer than the grace period. The metrics may take ``tracking.drain_s``.
        """
        for sidecar in self._sidecars:
            sidecar.finish(state)
        deadline = time.monotonic() + self._drain_s
        if self._publisher:
            self._recorder.log(f"publishing on {self._config.publish_to}")
            grace_s = self._config.grace_s
            if not self._publisher.close(min(DRAIN_S, max(grace_s, left_s)) if state == "succeeded" else grace_s):
                self._recorder.log("the last publication did not end in time")
        for sidecar in self._sidecars:
            if not sidecar.close(max(0.0, deadline - time.monotonic())):
                self._recorder.event("tracking_unfinished", service=sidecar.service)
                self._recorder.log(f"[{sidecar.service}] not everything was sent within {self._drain_s:g} s")
