"""What only SkyPilot can tell, asked of it in a process of its own.

``import sky`` takes seconds, prints to standard output, and may wait for ever on a network that swallows packets. A
process can be given a deadline and ended, and what it prints is nobody's.

::

    python -m bafogpt.launch.sky_probe catalog L40 [CLOUD]   renew SkyPilot's catalog where that offers this GPU
    python -m bafogpt.launch.sky_probe clouds [CLOUD]        which clouds' credentials work, and why the others' do not
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bafogpt.core import process

T = TypeVar("T")

INSTALL_HINT = "pip install 'bafogpt[cloud]'"


def installed() -> bool:
    """Whether SkyPilot can be imported, without importing it. A folder ``sky/`` of task files is not SkyPilot."""
    spec = importlib.util.find_spec("sky")
    return spec is not None and spec.origin is not None


def ask(what: str, *words: str, deadline_s: float) -> dict[str, Any] | None:
    """SkyPilot's answer; None when it is not installed, fails, or has not answered within ``deadline_s`` seconds."""
    if not installed():
        return None
    environment = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(
        [sys.executable, "-m", "bafogpt.launch.sky_probe", what, *words],
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


def _catalog(gpu: str, cloud: str | None = None) -> dict[str, Any]:
    """Have SkyPilot look for the GPU, which renews the files it reads; what cannot be fetched is named."""
    from sky.skylet import constants

    from sky import catalog

    clouds = [cloud] if cloud else [str(each) for each in constants.ALL_CLOUDS if each not in _WITHOUT_CATALOG]
    pattern = f"^{re.escape(gpu)}$"

    def renew(name: str) -> str:
        try:
            catalog.list_accelerators(gpus_only=True, name_filter=pattern, clouds=[name], case_sensitive=False)
        except Exception as error:  # offline, an unknown cloud, a file of another format: the others still count
            return type(error).__name__
        return "ok"

    return {"clouds": _each(clouds, renew, otherwise="no answer in time")}


_WITHOUT_CATALOG = ("kubernetes", "slurm", "ssh", "vsphere")
ENOUGH_S = 25.0
"""How long one cloud may take; who asks waits a little longer, so that the others' answers are not lost."""


def _each(names: Sequence[str], call: Callable[[str], T], otherwise: T) -> dict[str, T]:
    """``call`` for every name at once; ``otherwise`` for one that has not answered in time."""
    pool = concurrent.futures.ThreadPoolExecutor(len(names))
    futures = {name: pool.submit(call, name) for name in names}
    concurrent.futures.wait(futures.values(), timeout=ENOUGH_S)
    return {name: future.result() if future.done() else otherwise for name, future in futures.items()}


def _clouds(cloud: str | None = None) -> dict[str, Any]:
    """Check credentials as ``sky check`` does: cloud by cloud, with SkyPilot's reason where they do not work."""
    from sky.clouds import CloudCapability
    from sky.utils import registry

    import sky

    names = [cloud] if cloud else sorted(registry.CLOUD_REGISTRY)

    def check(name: str) -> dict[str, Any]:
        try:
            each = registry.CLOUD_REGISTRY.from_str(name)
            works, reason = each.check_credentials(CloudCapability.COMPUTE)
        except Exception as error:  # a cloud whose own client is not installed says so by an exception
            return {"enabled": False, "reason": f"{type(error).__name__}: {error}"}
        return {"enabled": bool(works), "reason": _first_line(reason)}

    silent = {"enabled": False, "reason": "no answer in time"}
    return {"version": sky.__version__, "clouds": _each(names, check, otherwise=silent)}


def _first_line(reason: Any) -> str:
    text = " ".join(str(each) for each in reason.values()) if isinstance(reason, dict) else str(reason or "")
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip().partition("\n")[0].strip()


def main(words: list[str]) -> int:
    """Answer on what was standard output; SkyPilot's own output goes nowhere."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    questions: dict[str, Callable[..., dict[str, Any]]] = {"catalog": _catalog, "clouds": _clouds}
    value = questions[words[0]](*words[1:])
    with os.fdopen(answers, "w") as out:
        json.dump(value, out)
    os._exit(0)  # a thread that waits for a dead network does not hold the answer up


if __name__ == "__main__":
    main(sys.argv[1:])
