"""A job by its name: a file in ``jobs/``, or the record of a run, ``runs/NAME``.

A recorded job is fully resolved. Both the launch and the machine take it from the bucket, and both compare the
dataset's digest with the recorded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError
from bafogpt.core.settings import Settings
from bafogpt.jobs import dataset, project
from bafogpt.jobs import job as jobs
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket

PREFIX = "runs/"
STEM_LENGTH = 40
"""Longest part of a run's name that is kept before a suffix."""


@dataclass(frozen=True, kw_only=True)
class JobSource:
    """A job and where it was found."""

    job: Job
    argument: str
    """The argument of ``bafogpt job run``, in the folder ``root``."""
    name_stem: str
    """The beginning of a run's default name."""
    root: Path
    """The folder with ``jobs/`` and ``sky/``."""


def find(name: str, settings: Settings, assignments: Sequence[str] = ()) -> JobSource:
    """The job of a name, a path or ``runs/NAME``, with ``--set`` assignments applied.

    Raises :class:`ConfigError`; for a recorded job also :class:`~bafogpt.core.errors.RunNotFoundError`,
    :class:`~bafogpt.core.errors.CorruptError` when its dataset has changed, and the bucket's errors.
    """
    if name.startswith(PREFIX) and not name.endswith((".yaml", ".yml")):
        bucket = Bucket.open(settings.bucket, settings)
        run = name.removeprefix(PREFIX).rstrip("/")
        job = recorded_job(bucket, RunStore(bucket).load(run), assignments)
        return JobSource(
            job=job, argument=f"{PREFIX}{run}", name_stem=run[:STEM_LENGTH].rstrip("-"), root=project.root()
        )
    path = project.job_file(name)
    root = path.resolve().parent.parent
    argument = str(path.resolve().relative_to(root))
    return JobSource(job=jobs.load(path, assignments), argument=argument, name_stem=path.stem, root=root)


def recorded_job(bucket: Bucket, record: RunRecord, assignments: Sequence[str] = ()) -> Job:
    """The job of a run's record. Its dataset must be the one that the run read, unless ``--set`` names another."""
    if not record.job:
        raise ConfigError(f"the record of {record.name} has no job", f"bafogpt runs show {record.name}")
    values = dict(record.job)
    for text in assignments:
        values = schema.merge(values, schema.parse_assignment(text))
    job = schema.build(Job, values, where=f"{bucket.url}/runs/{record.name}/run.json")
    if not any(text.partition("=")[0].strip() == "train.data.path" for text in assignments):
        dataset.check_same_data(record.data, bucket.child(job.train.data.path), record.name)
    return job
