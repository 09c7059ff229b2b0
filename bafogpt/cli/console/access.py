"""What commands open: the runs of a bucket, and the engine of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bafogpt.launch.engines.base import Engine
    from bafogpt.runs.store import RunStore


def run_store(bucket: str | None = None) -> RunStore:
    """The runs of ``bucket``, or of the bucket in the settings."""
    from bafogpt.core import settings
    from bafogpt.runs.store import RunStore
    from bafogpt.storage.bucket import Bucket

    config = settings.load({"bucket": bucket})
    return RunStore(Bucket.open(config.bucket, config))


def engine_of(run: str) -> Engine:
    """The engine that holds a run. Raises :class:`~bafogpt.core.errors.RunNotFoundError`."""
    from bafogpt.core import settings
    from bafogpt.launch import engines

    return engines.engine_of(run, settings.load())
