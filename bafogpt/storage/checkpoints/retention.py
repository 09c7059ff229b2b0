"""Which checkpoints to keep, and the removal of the others: manifests first, then objects that no manifest lists."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

from bafogpt.core.errors import AuthError, StorageError
from bafogpt.storage import transfer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import Checkpoint
from bafogpt.storage.transfer import multipart

log = logging.getLogger(__name__)
BEST_METRIC = "validation_loss"
"""The best checkpoint has the lowest, in the trainer's metadata and in the manifest's."""
_STEP = re.compile(r"step-(\d+)/")


def steps_to_keep(complete: Sequence[Checkpoint], last: int, every: int | None, best: str | None) -> set[int]:
    """The newest ``last``, the multiples of ``every``, and the one with the lowest metric ``best``."""
    steps = {each.step for each in complete[-last:]}
    steps |= {each.step for each in complete if every and each.step % every == 0}
    if best is not None and (lowest := best_of(complete, best)) is not None:
        steps.add(lowest.step)
    return steps


def best_of(complete: Sequence[Checkpoint], name: str = BEST_METRIC) -> Checkpoint | None:
    """The checkpoint with the lowest metric ``name`` (the newest of equals); None where none has it."""
    rated = [(value, -each.step, each) for each in complete if (value := _metric(each, name)) is not None]
    return min(rated)[2] if rated else None


def remove(bucket: Bucket, retired: Sequence[Checkpoint], rest: Sequence[Checkpoint]) -> None:
    """Remove the manifests of ``retired``, then every object, and every unfinished upload, of steps up to the newest of
    ``rest`` that none of ``rest`` names."""
    for checkpoint in retired:
        bucket.delete(f"{checkpoint.name}.json")
    newest = rest[-1].step
    named = {file.object for each in rest for file in each.files}
    for info in bucket.list():
        if info.path not in named and _step_of(info.path) <= newest:
            bucket.delete(info.path)
    if any(file.bytes > transfer.PART_BYTES for each in (*retired, *rest) for file in each.files):
        _abort_uploads(bucket, newest)


def _abort_uploads(bucket: Bucket, newest: int) -> None:
    """Abort unfinished uploads: their parts are billed but not listed. Only large files have parts."""
    try:
        for upload in multipart.unfinished(bucket):
            if _step_of(upload.path) <= newest:
                upload.abort()
    except (AuthError, StorageError) as error:
        log.warning("unfinished uploads are not removed: %s", error.message)


def _step_of(path: str) -> float:
    """The step that an object belongs to; infinite for any other object."""
    match = _STEP.match(path)
    return int(match.group(1)) if match else math.inf


def _metric(checkpoint: Checkpoint, name: str) -> float | None:
    value = checkpoint.metadata.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return None
    return float(value)
