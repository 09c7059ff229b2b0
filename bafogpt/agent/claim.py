"""Claiming a run before anything works on it: the dataset is there, nobody else is at it, the attempt has a number."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bafogpt.agent import provenance
from bafogpt.core import schema
from bafogpt.core.errors import ConflictError, NotFoundError
from bafogpt.jobs import env
from bafogpt.jobs.image_ref import PREFIX, digest_of
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunRecord, RunStore, now
from bafogpt.storage.bucket import Bucket

IMAGE_LABELS = Path("/etc/bafogpt/image.json")
"""Where an image of ``docker/`` says what it was built from: ``revision``, ``constraints``, ``base``."""


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """Where a supervisor is: what the engine told it."""

    infra: str = "local"
    price_per_hour: float = 0.0
    git: str = ""
    image: str | None = None
    """Reference of the container image, where the launch named one."""
    image_labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, labels: Path = IMAGE_LABELS) -> LaunchInfo:
        """As the launch wrote it into the task's ``envs``, and the image into its file of ``labels``."""
        price = os.environ.get(env.PRICE_PER_HOUR, "0")
        launched = os.environ.get(env.INFRA)
        image = os.environ.get(env.IMAGE, "").removeprefix(PREFIX)
        return cls(
            infra=launched or "local",
            price_per_hour=float(price),
            git=os.environ.get(env.GIT, ""),
            image=image if image and launched != "local" else None,  # of a local run, the variable is somebody else's
            image_labels=_read_labels(labels),
        )


def _read_labels(path: Path) -> dict[str, str]:
    """The labels in a file, those that are text; a file that cannot be read has none, and is no reason not to train."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str)} if isinstance(values, dict) else {}


def name_from_environment(job: str) -> str:
    """A run's name where the launch gave none (plain ``sky launch``); a recovered task gets the same again."""
    task = os.environ.get("SKYPILOT_TASK_ID")
    if not task:
        return job
    return f"{job}-{hashlib.sha256(task.encode()).hexdigest()[:6]}"


@contextlib.contextmanager
def claim(job: Job, name: str, bucket: Bucket, folder: Path, place: LaunchInfo) -> Iterator[RunRecord]:
    """Hold run ``name`` on this machine, as a new attempt with a record that says "running".

    A run that has succeeded already is not claimed again: its record says so. Raises what the bucket raises,
    :class:`NotFoundError` for a dataset that is not there, :class:`ConflictError` when another process here is at it.
    """
    bucket.check()
    if not bucket.exists(f"{job.train.data.path}/manifest.json"):
        raise NotFoundError(
            f"no dataset at {bucket.url}/{job.train.data.path}",
            f"bafogpt data prepare starter --tokenizer bytes --out {job.train.data.path}",
        )
    store = RunStore(bucket)
    with run_lock(folder, name):
        earlier = store.find(name)
        if earlier and earlier.state == "succeeded":
            yield earlier
            return
        attempt = store.claim_attempt(name, {"host": platform.node()})
        made_of = provenance.collect(
            bucket.child(job.train.data.path),
            attempt,
            infra=place.infra,
            price_per_hour=place.price_per_hour,
            earlier=earlier.machines if earlier else (),
        )
        yield store.save(replace(_record(job, name, place, attempt, earlier), **made_of))


def _record(job: Job, name: str, place: LaunchInfo, attempt: int, earlier: RunRecord | None) -> RunRecord:
    """The run's record at the start of an attempt."""
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
        infra=place.infra,
        host=platform.node(),
        price_per_hour=place.price_per_hour,
        job=schema.to_dict(job),
        git=place.git,
        image=place.image,
        image_digest=digest_of(place.image),
        image_labels=dict(place.image_labels),
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
                f"run {name} is at work on this machine already", f"bafogpt cloud status {name}"
            ) from None
        yield
