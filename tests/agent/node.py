"""One node of a run, as a process: ``python node.py JOB.json RUN FOLDER [WORKER]``, told by SkyPilot's variables.

What ``bafogpt job run`` does, with a worker of the test's choice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bafogpt.agent import supervisor
from bafogpt.agent.claim import LaunchInfo
from bafogpt.agent.multinode.heartbeat import Nodes
from bafogpt.agent.workers import WORKER
from bafogpt.core import schema, settings
from bafogpt.jobs.job import Job
from bafogpt.storage.bucket import Bucket


def main(job: Path, name: str, folder: Path, worker: list[str]) -> int:
    config = settings.load()
    outcome = supervisor.supervise(
        schema.build(Job, json.loads(job.read_text()), where=str(job)),
        name,
        Bucket.open(config.bucket, config),
        folder,
        LaunchInfo.from_environment(),
        (sys.executable, *worker) if worker else WORKER,
        nodes=Nodes.from_environment(),
    )
    print(outcome, flush=True)
    return int(outcome.exit_code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
