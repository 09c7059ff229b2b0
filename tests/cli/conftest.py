"""The command line run inside the test's own process."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bafogpt.cli import main as root
from bafogpt.cli.console.app import App


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def nobodys_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and no project file, so that no person's settings decide how a test ends."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "BAFOGPT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("bucket", "s3_endpoint", "s3_region", "infra", "home", "zar_per_usd", "s3_timeout_s"):
        monkeypatch.delenv(f"BAFOGPT_{name.upper()}", raising=False)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("config", "show")`` as the installed command would run it."""

    def run(*words: str) -> Ran:
        code = root.main(words)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """``stub(function)`` makes ``bafogpt stub run`` call the function: a sub-command of the test's own."""

    def plant(function: Callable[..., None]) -> None:
        module = types.ModuleType("bafogpt.cli.stub")
        app = App(help="A stub.")
        app.command("run")(function)
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bafogpt.cli.stub", module)
        monkeypatch.setitem(root.COMMANDS, "stub", "A stub.")

    return plant
