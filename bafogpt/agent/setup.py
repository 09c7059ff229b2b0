"""``bafogpt job setup``: runs a task's ``setup:`` so that its failure can be read after its machine is gone.

It runs before the supervisor: without it, the output would be lost with the machine, and the bucket would hold nothing
of the run. Tasks in ``sky/`` have no ``setup:``; a user's own task may.
"""

from __future__ import annotations

import collections
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.agent.recorder import Recorder
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles

KEPT_LINES = 2000
"""Last lines of the output that are kept."""


def prepare(job: Job, name: str, bucket: Bucket, folder: Path, launch: LaunchInfo, command: Sequence[str]) -> int:
    """Run ``command``, its output passed on as it comes; returns its exit code, as a shell has it.

    Where that is not 0, run ``name`` of ``bucket`` has failed: its record says so, and its log is the output.
    ``folder`` is local disk for the run only. A success leaves nothing. Raises what :func:`~bafogpt.agent.claim.claim`
    does, and :class:`~bafogpt.core.errors.StorageError`.
    """
    code, output = _run(command)
    if code:
        with claim(job, name, bucket, folder, launch) as record:
            if record.state != "succeeded":
                recorder = Recorder(RunStore(bucket), record, TrainerFiles(folder), job.supervisor)
                _record_failure(recorder, f"the task's setup ended with exit code {code}", output)
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


def _record_failure(recorder: Recorder, message: str, output: Sequence[str]) -> None:
    recorder.append_log([*output, f"{recorder.record.name}: failed: {message}"])
    recorder.event("run_ended", state="failed", message=message)
    recorder.update(state="failed", message=message)
    recorder.flush()
