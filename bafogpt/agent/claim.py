"""Claims a run: the dataset exists, no other process here holds the run, the attempt gets its number."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bafogpt.agent import provenance
from bafogpt.core import schema
from bafogpt.core.errors import ConflictError, NotFoundError
from bafogpt.jobs import env
from bafogpt.jobs.dataset import describe
from bafogpt.jobs.image_ref import PREFIX, digest_of
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunRecord, RunStore, now
from bafogpt.storage.bucket import Bucket

IMAGE_LABELS = Path("/etc/bafogpt/image.json")
"""The labels of an image of ``docker/``: ``revision``, ``constraints``, ``base``."""


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """What the launch configures on the machine."""

    infra: str = "local"
    price_per_hour: float = 0.0
    git: str = ""
    image: str | None = None
    """Reference of the container image, where the launch named one."""
    image_labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, labels: Path = IMAGE_LABELS) -> LaunchInfo:
        """From the task's ``envs`` and the image's file of ``labels``."""
        infra = os.environ.get(env.INFRA)
        image = os.environ.get(env.IMAGE, "").removeprefix(PREFIX)
        return cls(
            infra=infra or "local",
            price_per_hour=float(os.environ.get(env.PRICE_PER_HOUR, "0")),
            git=os.environ.get(env.GIT, ""),
            image=image if image and infra != "local" else None,  # a local run has no image; the variable is another's
            image_labels=_read_labels(labels),
        )


def _read_labels(path: Path) -> dict[str, str]:
    """The text values in a file; none where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str)} if isinstance(values, dict) else {}


def name_from_environment(job: str) -> str:
    """A run's name where the launch gave none (plain ``sky launch``); a recovered task gets the same name again."""
    task = os.environ.get("SKYPILOT_TASK_ID")
    if not task:
        return job
    return f"{job}-{hashlib.sha256(task.encode()).hexdigest()[:6]}"


@contextlib.contextmanager
def claim(job: Job, name: str, bucket: Bucket, folder: Path, launch: LaunchInfo) -> Iterator[RunRecord]:
    """Hold run ``name`` on this machine, as a new attempt with a record whose state is "running".

    A run that has succeeded is not claimed: its record is returned as it is. Raises what the bucket raises,
    :class:`NotFoundError` for a missing dataset, :class:`ConflictError` when another process here holds the run.
    """
    bucket.check()
    if not bucket.exists(f"{job.train.data.path}/manifest.json"):
        command = "data prepare" if job.train.adapter is None else "data instructions"
        raise NotFoundError(
            f"no dataset at {bucket.url}/{job.train.data.path}",
            f"bafogpt {command} starter --tokenizer bytes --out {job.train.data.path}",
        )
    store = RunStore(bucket)
    with run_lock(folder, name):
        earlier = store.find(name)
        if earlier and earlier.state == "succeeded":
            yield earlier
            return
        attempt = store.claim_attempt(name, {"host": platform.node()})
        yield store.save(_new_record(job, name, bucket, launch, attempt, earlier))


def _new_record(
    job: Job, name: str, bucket: Bucket, launch: LaunchInfo, attempt: int, earlier: RunRecord | None
) -> RunRecord:
    """The run's record at the start of an attempt; ``earlier`` is that of the attempt before."""
    infra, price = launch.infra, launch.price_per_hour
    machine = provenance.machine(attempt, infra=infra, price_per_hour=price)
    return RunRecord(
        name=name,
        trainer=job.trainer,
        state="running",
        created=earlier.created if earlier else now(),
        updated=now(),
        steps=job.train.steps,
        step=earlier.step if earlier else 0,
        attempts=attempt,
        restarts=earlier.restarts if earlier else 0,
        infra=infra,
        host=platform.node(),
        price_per_hour=price,
        job=schema.to_dict(job),
        git=launch.git,
        gpus=os.environ.get(env.GPUS, ""),
        data=describe(bucket.child(job.train.data.path)),
        machines=[*(earlier.machines if earlier else ()), machine],
        image=launch.image,
        image_digest=digest_of(launch.image),
        image_labels=dict(launch.image_labels),
        versions=provenance.versions(),
    )


@contextlib.contextmanager
def run_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the run on this machine. Raises :class:`ConflictError` when another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"run {name} is already running on this machine", f"bafogpt cloud status {name}"
            ) from None
        yield
