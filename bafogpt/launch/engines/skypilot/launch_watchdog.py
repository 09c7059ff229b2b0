"""The watchman of a launch: ``python -m bafogpt.launch.engines.skypilot.launch_watchdog NAME IDLE_MINUTES``.

It starts before the launch is asked for and reads its standard input. A launch that came to its end says so there, and
the watchman goes. When the input closes without a word, whoever launched has been killed: then the watchman waits for
SkyPilot's server to be through with the request, and sees that what came up ends itself.
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
    """A watchman over what is done inside, until he is released by calling what this yields.

    Left in any other way, by an error or by death, he takes over.
    """
    words = [sys.executable, "-m", "bafogpt.launch.engines.skypilot.launch_watchdog", name, str(idle_minutes)]
    with log.open("ab") as out:
        watchman = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
    assert watchman.stdin is not None

    def release() -> None:
        assert watchman.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            watchman.stdin.write(DONE)
            watchman.stdin.flush()
        watchman.wait(timeout=30)

    try:
        yield release
    finally:
        with contextlib.suppress(BrokenPipeError):
            watchman.stdin.close()


def main(name: str, idle_minutes: int) -> None:
    """Wait for the word; without it, settle what the launch has left."""
    if sys.stdin.buffer.readline() == DONE:
        return
    from bafogpt.launch.engines.skypilot.client import Client
    from bafogpt.launch.engines.skypilot.teardown import Guard

    Guard(client=Client(), storage_timeout_s=3600.0).settle(name, idle_minutes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
