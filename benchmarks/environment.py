"""The peers' own environment, ``.bench-venv``: what benchmarks compare with is never a dependency of the project.

    python benchmarks/environment.py        makes it, or does nothing when ``peers.txt`` has not changed

Packages that do not install, alone or beside the others, are left out; :func:`problems` tells which and why.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".bench-venv"
PEERS = Path(__file__).parent / "peers.txt"
_STATE = FOLDER / "peers.json"


def ensure() -> Path:
    """Make the environment unless it is as ``peers.txt`` says; its Python."""
    digest = hashlib.sha256(PEERS.read_bytes()).hexdigest()
    if _state().get("digest") == digest:
        return python()
    print(f"bench: installing what {PEERS.name} lists into {FOLDER.name} (minutes the first time)", file=sys.stderr)
    if not python().exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    wanted = [line for line in PEERS.read_text().splitlines() if line and not line.startswith("#")]
    failed = {}
    if _install(wanted):  # one by one, so that one of them does not keep out the others
        for requirement in wanted:
            if reason := _install([requirement]):
                failed[_name(requirement)] = reason
    _STATE.write_text(json.dumps({"digest": digest, "problems": failed}))
    return python()


def python() -> Path:
    """The environment's interpreter."""
    return FOLDER / "bin" / "python"


def program(name: str) -> Path:
    """A command that a peer's package brings."""
    return FOLDER / "bin" / name


def problems() -> dict[str, str]:
    """The packages that could not be installed, with pip's last line."""
    found: dict[str, str] = _state().get("problems", {})
    return found


def versions() -> dict[str, str]:
    """The pinned version of each peer."""
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", PEERS.read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in pairs}


def _state() -> dict[str, dict[str, str]]:
    try:
        state: dict[str, dict[str, str]] = json.loads(_STATE.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state


def _install(requirements: list[str]) -> str:
    """pip's last line when it fails, or nothing."""
    command = [python(), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def _name(requirement: str) -> str:
    return re.split(r"[=<>\[]", requirement)[0].lower()


if __name__ == "__main__":
    ensure()
    for peer, why in problems().items():
        print(f"{peer}: {why}")
