"""Questions to SkyPilot that are asked in a separate process, with a deadline.

``import sky`` takes seconds, prints to standard output and can block on a network that drops packets.

::

    python -m bafogpt.launch.sky_probe catalog L40 [CLOUD]   refresh SkyPilot's price catalog for this GPU
    python -m bafogpt.launch.sky_probe clouds [CLOUD]        check credentials cloud by cloud
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from bafogpt.core import process

INSTALL_HINT = "pip install 'bafogpt[cloud]'"


def installed() -> bool:
    """Whether SkyPilot can be imported, without importing it. A folder ``sky/`` of task files does not count."""
    spec = importlib.util.find_spec("sky")
    return spec is not None and spec.origin is not None


def ask(question: str, *words: str, deadline_s: float) -> dict[str, Any] | None:
    """SkyPilot's answer; None when it is not installed, fails, or does not answer within ``deadline_s`` seconds."""
    if not installed():
        return None
    environment = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(
        [sys.executable, "-m", "bafogpt.launch.sky_probe", question, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer, _ = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.end(process.in_session(child.pid), grace_s=0)
        child.wait()
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def main(question: str, *words: str) -> None:
    """Write the answer to the original standard output; SkyPilot's own output is discarded."""
    from bafogpt.launch.engines.skypilot import client

    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    value = client.refresh_catalog(*words) if question == "catalog" else client.check_credentials(*words)
    with os.fdopen(answers, "w") as out:
        json.dump(value, out)
    os._exit(0)  # do not wait for threads that are blocked on a dead network


if __name__ == "__main__":
    main(*sys.argv[1:])
