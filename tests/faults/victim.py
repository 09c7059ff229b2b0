"""The supervisor under test: ``python victim.py JOB.json RUN FOLDER [--torch]``. The real one, made mortal.

What the run is killed at is decided elsewhere; here it is only made mortal, and parts of uploads are made small, so
that a checkpoint of 9 MB has several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults import points

PART_BYTES = 5 << 20
"""As small as S3 allows."""


def main(job: Path, name: str, folder: Path, loop: list[str]) -> int:
    from bafogpt.agent import claim, supervisor
    from bafogpt.core import schema, settings
    from bafogpt.jobs.job import Job
    from bafogpt.storage import bucket as buckets
    from bafogpt.storage import transfer
    from bafogpt.storage.transfer import upload

    for module in (buckets, upload, transfer):
        module.PART_BYTES = PART_BYTES  # type: ignore[attr-defined]
    config = settings.load()
    worker = (sys.executable, str(Path(__file__).with_name("worker.py")), *loop)
    ending = supervisor.supervise(
        schema.build(Job, json.loads(job.read_text()), where=str(job)),
        name,
        buckets.Bucket.open(config.bucket, config),
        folder,
        claim.LaunchInfo(),
        worker,
    )
    print(f"ended: {ending}", flush=True)
    return int(ending.exit_code)


if __name__ == "__main__":
    points.arm("supervisor")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
