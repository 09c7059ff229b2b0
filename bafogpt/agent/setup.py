"""``bafogpt job setup``: a task's ``setup:`` whose failure can still be read when its machine is gone.

Our tasks have no ``setup:``; somebody's own may. It runs before the supervisor does, so without this what it printed
would be lost with the machine, and the bucket would know nothing of the run.
"""

from __future__ import annotations

import collections
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.agent.recorder import Recorder
from bafogpt.core.errors import ExitCode
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles

KEPT_LINES = 2000
"""Of what a setup prints, the last: the bucket is no place for the output of a compiler."""


def prepare(job: Job, name: str, bucket: Bucket, folder: Path, place: LaunchInfo, command: Sequence[str]) -> int:
    """Run ``command`` with its output passed on as it comes; returns its exit code, as a shell tells it.

    Where that is not 0, run ``name`` of ``bucket`` has ended with it: a record that says "failed", and the output as
    its log. ``folder`` is local disk for the run alone. A success leaves nothing. Raises what
    :func:`~bafogpt.agent.claim.claim` does, and :class:`~bafogpt.core.errors.StorageError`.
    """
    code, output = _run(command)
    if code:
        _record_failure(job, name, bucket, folder, place, code, output)
    return code


def _run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code and last lines of a command."""
    kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.append(line.rstrip("\n"))
    code = process.returncode
    return (code if code >= 0 else 128 - code), list(kept)


def _record_failure(
    job: Job, name: str, bucket: Bucket, folder: Path, place: LaunchInfo, code: int, output: Sequence[str]
) -> None:
    message = f"the task's setup ended with exit code {code}"
    ending = ExitOutcome("failed", message, f"bafogpt runs logs {name}", ExitCode.JOB_FAILED)
    with claim(job, name, bucket, folder, place) as record:
        if record.state == "succeeded":
            return
        recorder = Recorder(RunStore(bucket), record, TrainerFiles(folder), every_s=job.supervisor.flush_s)
        recorder.append_log([*output, f"{name}: {ending.state}: {ending.message}"])
        recorder.event("run_ended", state=ending.state, message=ending.message)
        recorder.update(state=ending.state, message=ending.message)
        recorder.flush()
