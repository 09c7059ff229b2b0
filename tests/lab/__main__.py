"""``scripts/lab``: start, stop, status, env."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Protocol

from tests.lab import pods, slurm
from tests.lab.config import PODS, SLURM, LabConfig, LabError, locked


class Lab(Protocol):
    """What both labs' modules have."""

    def install(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def is_up(self) -> bool: ...
    def status(self) -> list[str]: ...
    def leftovers(self) -> list[str]: ...
    def environment(self) -> dict[str, str]: ...


LABS: dict[str, tuple[LabConfig, Lab]] = {"slurm": (SLURM, slurm), "pods": (PODS, pods)}


def main() -> int:
    """Exit status 0, or 1 with two lines on standard error; ``status`` answers 1 when the lab is not up."""
    parser = argparse.ArgumentParser(prog="scripts/lab", description="Clouds on this machine that SkyPilot rents from.")
    parser.add_argument("what", choices=["start", "stop", "status", "env"])
    parser.add_argument("lab", choices=list(LABS), nargs="?", help="status and stop: all of them when none is named")
    words = parser.parse_args()
    if words.lab is None and words.what in ("start", "env"):
        parser.error(f"{words.what} needs the lab's name: {' or '.join(LABS)}")
    try:
        return max(_do(words.what, name) for name in ([words.lab] if words.lab else LABS))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        print(" hint: scripts/lab stop, then scripts/lab start", file=sys.stderr)
        return 1


def _do(what: str, name: str) -> int:
    config, lab = LABS[name]
    began = time.monotonic()
    if what == "start":
        with locked(config):
            lab.start()
        print(f'lab: {name} is up ({time.monotonic() - began:.1f} s); use it: eval "$(scripts/lab env {name})"')
    elif what == "stop":
        with locked(config):
            lab.stop()
        print(f"lab: {name} is gone ({time.monotonic() - began:.1f} s)")
    elif what == "env":
        for variable, value in lab.environment().items():
            print(f"export {variable}={shlex.quote(value)}")
    else:
        up = lab.is_up()
        parts = [] if up else lab.leftovers()
        print(f"{name}: {'up' if up else 'parts of it are left' if parts else 'not running'}")
        print("".join(f"  {line}\n" for line in (lab.status() if up else parts)), end="")
        return 0 if up else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
