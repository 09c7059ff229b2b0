"""The process that cleans up after a launch whose client was killed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bafogpt.core import process
from bafogpt.launch.engines.skypilot import launch_watchdog, teardown


@pytest.mark.parametrize("killed", [False, True], ids=["released", "killed"])
def test_the_watchdog_of_a_killed_launch_cleans_up(tmp_path: Path, killed: bool):
    """The client dies by SIGKILL inside the block, or releases the watchdog, which then has ended."""
    cleaned = tmp_path / "cleaned"
    (tmp_path / "sitecustomize.py").write_text(
        "import os; from bafogpt.launch.engines.skypilot import teardown\n"
        "def clean_up(self, *words):\n"
        f"    open({str(tmp_path / 'new')!r}, 'w').write(repr(words))\n"
        f"    os.rename({str(tmp_path / 'new')!r}, {str(cleaned)!r})\n"
        "teardown.Teardown.clean_up = clean_up\n"
    )
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bafogpt.launch.engines.skypilot import launch_watchdog\n"
        "with launch_watchdog.watching('r1', 7, Path(sys.argv[1])) as release:\n"
        f"    {'os.kill(os.getpid(), signal.SIGKILL)' if killed else 'release()'}\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], env=environment, check=not killed)
    if killed:
        assert process.wait_until(cleaned.exists, 60), (tmp_path / "log").read_text()
        assert cleaned.read_text() == "('r1', 7)"
    else:
        assert not cleaned.exists()


def test_only_the_whole_message_releases_the_watchdog(monkeypatch: pytest.MonkeyPatch):
    cleaned: list[str] = []
    monkeypatch.setattr(teardown.Teardown, "clean_up", lambda self, name, idle: cleaned.append(name))
    for message in (launch_watchdog.DONE, b"", b"do"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(message)))
        launch_watchdog.main("r1", 7)
    assert cleaned == ["r1", "r1"]
