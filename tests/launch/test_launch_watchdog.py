"""The process that settles a launch whose client was killed."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bafogpt.launch.engines.skypilot import launch_watchdog, teardown


def test_a_launch_whose_client_is_killed_is_settled_by_its_watchman(tmp_path: Path):
    """The client dies by SIGKILL inside the watched part; the watchman hears no word and goes to work."""
    settled = tmp_path / "settled"
    (tmp_path / "sitecustomize.py").write_text(
        "from bafogpt.launch.engines.skypilot import teardown\n"
        f"teardown.Teardown.clean_up = lambda self, *words: open({str(settled)!r}, 'w').write(repr(words))\n"
    )
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bafogpt.launch.engines.skypilot import launch_watchdog\n"
        "with launch_watchdog.watching('r1', 7, Path(sys.argv[1])) as release:\n"
        "    release() if sys.argv[2] == 'end' else os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"}
    for how in ("end", "die"):
        assert not settled.exists()
        words = [sys.executable, "-c", script, str(tmp_path / "log"), how]
        subprocess.run(words, env=environment, timeout=60, check=how == "end")
    deadline = time.monotonic() + 60
    while not (settled.exists() and settled.read_text()) and time.monotonic() < deadline:  # opened, then written
        time.sleep(0.05)
    assert settled.read_text() == "('r1', 7)", (tmp_path / "log").read_text()


def test_the_message_is_what_releases_him(monkeypatch: pytest.MonkeyPatch):
    settled: list[str] = []
    monkeypatch.setattr(teardown.Teardown, "clean_up", lambda self, name, idle: settled.append(name))
    for said in (launch_watchdog.DONE, b"", b"do"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(said)))
        launch_watchdog.main("r1", 7)
    assert settled == ["r1", "r1"]
