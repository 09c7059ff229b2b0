"""The watchdog of a launch: ``python -m bafogpt.launch.engines.skypilot.launch_watchdog NAME IDLE_MINUTES``.

It starts before the launch and reads its standard input. A launch that finished writes :data:`DONE` there, and the
watchdog exits. When the input closes without it, the client has died: the watchdog waits until SkyPilot's server has
served the request, and gives what came up an end.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DONE = b"done\n"


@contextlib.contextmanager
def watching(name: str, idle_minutes: int, log: Path) -> Iterator[Callable[[], None]]:
    """Run a watchdog over the block; the yielded function releases it. Otherwise it cleans up when the block ends."""
    command = [sys.executable, "-m", "bafogpt.launch.engines.skypilot.launch_watchdog", name, str(idle_minutes)]
    with log.open("ab") as out:
        watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
    stdin = watchdog.stdin
    assert stdin is not None

    def release() -> None:
        with contextlib.suppress(BrokenPipeError):
            stdin.write(DONE)
            stdin.flush()
        watchdog.wait(timeout=30)

    try:
        yield release
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdin.close()


def main(name: str, idle_minutes: int) -> None:
    """Wait for :data:`DONE`; without it, clean up after the launch."""
    if sys.stdin.buffer.readline() == DONE:
        return
    from bafogpt.launch.engines.skypilot.client import Client
    from bafogpt.launch.engines.skypilot.teardown import Teardown

    Teardown(client=Client(), timeout_s=3600.0).clean_up(name, idle_minutes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
