"""Run records. The bucket is the database: ``runs/<name>/`` holds everything about a run.

::

    run.json                  the record below, rewritten when the state changes
    attempts/0001.json        host of an attempt; create-only, so two supervisors cannot both be attempt 1
    usage/0001.json           hours and dollars of an attempt, see :mod:`bafogpt.runs.usage`
    events/  metrics/  logs/  system_stats/   see :mod:`bafogpt.runs.log_segments`
    checkpoints/              see :mod:`bafogpt.storage.checkpoints.store`
    report.html
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from bafogpt.core import schema
from bafogpt.core.errors import ConflictError, NotFoundError, RunNotFoundError, UsageError, did_you_mean
from bafogpt.runs.log_segments import SegmentReader, read_bytes
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore

RunState = Literal["running", "succeeded", "stopped", "failed"]
SYSTEM_STATS = "system_stats"
"""The log of GPUs, CPU, memory, disk and network."""
MAX_UNFIT = 3
"""A run fails after so many unfit machines in a row."""
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,46}[a-z0-9])?")


def check_name(name: str) -> str:
    """The name, which is also that of its cluster and its folder. Raises :class:`UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a run's name: a letter, then up to 47 lowercase letters, digits or hyphens",
            "--name zulu-pretrain-2",
        )
    return name


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run is, and its state."""

    name: str
    trainer: str
    state: RunState
    created: str
    """UTC, ISO 8601, as is ``updated``."""
    updated: str
    message: str = ""
    """Why it failed or stopped."""
    steps: int = 0
    """Steps of the whole run."""
    step: int = 0
    attempts: int = 1
    restarts: int = 0
    """Trainer restarts over all attempts."""
    infra: str = "local"
    host: str = ""
    price_per_hour: float = 0.0
    job: dict[str, Any] = field(default_factory=dict)
    """The resolved job."""
    git: str = ""
    """Commit of the code; with ``+dirty.DIGEST``, the digest of the changes, when the tree had some."""
    gpus: str = ""
    """The GPUs that the launch requested: ``L40:4``."""
    data: dict[str, str] = field(default_factory=dict)
    """The dataset's manifest: its ``digest``, when it was ``created``, digest of its ``tokenizer``."""
    machines: list[dict[str, Any]] = field(default_factory=list)
    """The machine of each attempt: see :func:`bafogpt.agent.provenance.machine`."""
    image: str | None = None
    """The container image that the last attempt was launched in; null on ``local``."""
    image_digest: str | None = None
    """Its ``sha256:…`` in the registry, when the launch named it by digest."""
    image_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the image: ``revision``, ``constraints``, ``base``."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def unfit(self) -> list[str]:
        """Why the machines of the last attempts were unfit, oldest first; empty where the last one's was fit."""
        newest_first = itertools.takewhile(lambda machine: "unfit" in machine, reversed(self.machines))
        return [str(machine["unfit"]) for machine in newest_first][::-1]

    @property
    def wants_another_machine(self) -> bool:
        """Whether the last attempt ended because its machine was unfit, and another machine may be tried."""
        return self.state == "failed" and 0 < len(self.unfit) < MAX_UNFIT


class RunStore:
    """The runs of one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket.child("runs")

    def folder(self, name: str) -> Bucket:
        """Everything of one run."""
        return self.bucket.child(name)

    def names(self) -> list[str]:
        """Every run that has a record."""
        return sorted(self.bucket.folders())

    def load(self, name: str) -> RunRecord:
        """Raises :class:`RunNotFoundError` naming the nearest."""
        try:
            raw = self.folder(name).get("run.json")
        except NotFoundError:
            near = did_you_mean(name, self.names())
            raise RunNotFoundError(f"no run '{name}' in {self.bucket.url}{near}", "bafogpt runs ls") from None
        return schema.build(RunRecord, json.loads(raw), where=f"{self.bucket.url}/{name}/run.json")

    def find(self, name: str) -> RunRecord | None:
        """The record, or None."""
        try:
            return self.load(name)
        except RunNotFoundError:
            return None

    def save(self, record: RunRecord) -> RunRecord:
        """Write the record, with the time of writing."""
        stamped = replace(record, updated=now())
        self.folder(record.name).put("run.json", json.dumps(asdict(stamped), indent=1).encode())
        return stamped

    def claim_attempt(self, name: str, about: Mapping[str, Any]) -> int:
        """The number of a new attempt at the run; no other attempt can have the same."""
        number = len(self.folder(name).list("attempts/")) + 1
        while True:
            try:
                body = json.dumps({"attempt": number, "started": now(), **about}).encode()
                self.folder(name).put(f"attempts/{number:04d}.json", body, create_only=True)
                return number
            except ConflictError:
                number += 1

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events in order: ``{"time", "attempt", "event", …}``."""
        return SegmentReader(self.folder(name), "events").read()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Every metrics line, including steps that were done twice."""
        return SegmentReader(self.folder(name), "metrics").read()

    def system_stats(self, name: str) -> list[dict[str, Any]]:
        """See :mod:`bafogpt.agent.system_stats`."""
        return SegmentReader(self.folder(name), SYSTEM_STATS).read()

    def logs(self, name: str) -> str:
        """All output of supervisor and trainers."""
        return read_bytes(self.folder(name), "logs").decode("utf-8", errors="replace")

    def checkpoints(self, name: str) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.folder(name).child("checkpoints"))


def now() -> str:
    """The time in UTC, as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def curve(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One training line per step, the later one where a step was done again after a kill."""
    last: dict[int, dict[str, Any]] = {}
    for line in lines:
        if "loss" in line:
            last[int(line["step"])] = dict(line)
    return [last[step] for step in sorted(last)]


def sample_gaps(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the samples along a curve are not consecutive; empty for a run with none lost or repeated."""
    wrong, expected = [], 0
    for point in points:
        first, last = point["samples"]
        if first != expected:
            wrong.append(f"step {point['step']} begins at sample {first}, not {expected}")
        expected = last
    return wrong
