"""The process that runs a local task: ``python -m bafogpt.launch.engines.local_runner FOLDER WORKDIR``.

It leads a session of its own, so closing the terminal does not reach it. It keeps the embedded S3 server up while the
run uses it, forwards SIGTERM, and ends whatever processes the task leaves behind. When it is killed itself, the kernel
sends the task SIGTERM: the task saves, uploads and exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bafogpt.core import process, schema, settings
from bafogpt.core.errors import BafoError, ExitCode
from bafogpt.jobs import env
from bafogpt.launch.engines.base import EngineRun, EngineState
from bafogpt.launch.engines.local import write_state
from bafogpt.launch.plan import LOCAL
from bafogpt.runs.store import now

STATES: dict[int, EngineState] = {ExitCode.OK: "succeeded", ExitCode.JOB_CANCELLED: "stopped"}


def run_task(folder: Path, workdir: Path) -> int:
    """Run the task in ``folder`` to its end. Returns its exit code."""
    process.adopt_orphans()
    config = settings.load()
    grace_s = float(os.environ.get(env.GRACE_S, "90"))
    task = schema.load_yaml(folder / "task.yaml")
    with contextlib.ExitStack() as stack:
        environment = dict(os.environ)
        if config.s3_endpoint == settings.EMBEDDED and config.bucket.startswith("s3://"):
            from bafogpt.storage.embedded import server

            lease = stack.enter_context(server.lease(Path(config.home)))
            environment |= lease.endpoint.environment() | {env.S3_ENDPOINT: lease.endpoint.url}
        output = stack.enter_context((folder / "output.log").open("ab"))
        child = subprocess.Popen(
            ["/bin/bash", "-c", task["run"]],
            cwd=workdir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=process.die_with_parent(signal.SIGTERM),
        )
        signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pid = os.getpid()
        run = EngineRun(name=folder.name, infra=LOCAL, state="running", started=now(), pid=pid)
        started = process.start_time(pid) or 0.0
        write_state(folder, run, started, grace_s)
        code = child.wait()
        process.end(process.descendants(pid), grace_s=5)
        write_state(folder, replace(run, state=STATES.get(code, "failed"), exit_code=code), started, grace_s)
        return code


if __name__ == "__main__":
    try:
        sys.exit(run_task(Path(sys.argv[1]), Path(sys.argv[2])))
    except BafoError as error:
        sys.exit(error.message)
