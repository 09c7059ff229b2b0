"""Which checkpoints stay, and what goes with those that do not: manifests first, then what none of the rest names."""

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
"""What the best checkpoint has the lowest of, in the trainer's metadata and in the manifest's."""
_STEP = re.compile(r"step-(\d+)/")


def kept(complete: Sequence[Checkpoint], last: int, every: int | None, best: str | None) -> set[int]:
    """The steps that stay: the newest ``last``, the multiples of ``every``, and the one whose metadata has the lowest
    ``best`` (the newest of equals)."""
    steps = {each.step for each in complete[-last:]}
    steps |= {each.step for each in complete if every and each.step % every == 0}
    if best is not None and (lowest := best_of(complete, best)) is not None:
        steps.add(lowest.step)
    return steps


def best_of(complete: Sequence[Checkpoint], name: str = BEST_METRIC) -> Checkpoint | None:
    """The one whose metadata has the lowest ``name`` (the newest of equals); None where none has it."""
    rated = [(value, -each.step, each) for each in complete if (value := _metric(each, name)) is not None]
    return min(rated)[2] if rated else None


def clear(bucket: Bucket, retired: Sequence[Checkpoint], rest: Sequence[Checkpoint]) -> None:
    """Remove the manifests of ``retired``, then every object, and every unfinished upload, of steps up to the newest of
    ``rest`` that none of ``rest`` names."""
    for checkpoint in retired:
        bucket.delete(f"{checkpoint.name}.json")
    newest = rest[-1].step
    named = {file.object for each in rest for file in each.files}
    for info in bucket.list():
        if info.path not in named and _is_of_a_step_up_to(newest, info.path):
            bucket.delete(info.path)
    if any(file.bytes > transfer.PART_BYTES for each in (*retired, *rest) for file in each.files):
        _abort_uploads(bucket, newest)


def _abort_uploads(bucket: Bucket, newest: int) -> None:
    """Parts that a killed upload has left cost money and are in no listing. Only files of some size have parts."""
    try:
        for upload in multipart.unfinished(bucket):
            if _is_of_a_step_up_to(newest, upload.path):
                upload.abort()
    except (AuthError, StorageError) as error:
        log.warning("unfinished uploads are not cleared: %s", error.message)


def _is_of_a_step_up_to(newest: int, path: str) -> bool:
    match = _STEP.match(path)
    return match is not None and int(match.group(1)) <= newest


def _metric(checkpoint: Checkpoint, name: str) -> float | None:
    value = checkpoint.metadata.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return None
    return float(value)
