"""Where a job comes from: a file in ``jobs/``, or the record of a run, named ``runs/NAME``.

A recorded job is the resolved one, so it needs no job file, and neither the launch nor the machine that runs it can
read another: both take it from the bucket, and both hold the dataset's digest against the recorded one.
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
"""What may be left of a run's name when a suffix is put to it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A job that was found."""

    job: Job
    word: str
    """What ``bafogpt job run`` is given, in the folder ``root``."""
    stem: str
    """What a run's name begins with when none is given."""
    root: Path
    """The folder with ``jobs/`` and ``sky/``."""


def find(name: str, settings: Settings, assignments: Sequence[str] = ()) -> Source:
    """The job that a name, a path or ``runs/NAME`` means, with ``--set`` assignments laid on it.

    Raises :class:`ConfigError`; for a recorded job also :class:`~bafogpt.core.errors.RunNotFoundError`,
    :class:`~bafogpt.core.errors.CorruptError` when its dataset is no longer what it was, and what a bucket raises.
    """
    if name.startswith(PREFIX) and not name.endswith((".yaml", ".yml")):
        bucket = Bucket.open(settings.bucket, settings)
        run = name.removeprefix(PREFIX).rstrip("/")
        job = recorded_job(bucket, RunStore(bucket).load(run), assignments)
        return Source(job=job, word=f"{PREFIX}{run}", stem=run[:STEM_LENGTH].rstrip("-"), root=project.root())
    path = project.job_file(name)
    root = path.resolve().parent.parent
    return Source(
        job=jobs.load(path, assignments), word=str(path.resolve().relative_to(root)), stem=path.stem, root=root
    )


def recorded_job(bucket: Bucket, record: RunRecord, assignments: Sequence[str] = ()) -> Job:
    """The job of a run's record. Its dataset must be the one that the run read, unless ``--set`` names one."""
    if not record.job:
        raise ConfigError(f"the record of {record.name} holds no job", f"bafogpt runs show {record.name}")
    values = dict(record.job)
    named = False
    for text in assignments:
        value = schema.parse_assignment(text)
        values = schema.merge(values, value)
        named = named or text.partition("=")[0].strip() == "train.data.path"
    job = schema.build(Job, values, where=f"{bucket.url}/runs/{record.name}/run.json")
    if not named:
        dataset.check_same_data(record.data, bucket.child(job.train.data.path), record.name)
    return job
