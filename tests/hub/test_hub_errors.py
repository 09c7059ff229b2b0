"""What the Hub refuses, in two lines and with the right exit code."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bafogpt.cli.main import main
from bafogpt.core.errors import ExitCode
from bafogpt.core.settings import Settings

from .conftest import REPO, Copy, content
from .server import TOKEN, Handler, Hub, Refused
from .state import Fault

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client, not ours
READER = "hf_reads-only"


@dataclass(frozen=True)
class Pushed:
    """A private repository on the Hub, and the folder that was pushed."""

    hub: Hub
    model: Path
    patch: pytest.MonkeyPatch

    @property
    def files(self) -> dict[str, Any]:
        repo = self.hub.repos["zulu/model"]
        return repo.commits[repo.branches["main"]]


@pytest.fixture
def pushed(hub: Hub, copy: Copy, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pushed:
    copy(model, REPO)
    (model / "config.json").write_text("other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    return Pushed(hub, model, monkeypatch)


def gated(*_: object) -> None:
    raise Refused(403, "GatedRepo", "Access to model is restricted")


def read_only(pushed: Pushed) -> None:
    pushed.patch.setenv("HF_TOKEN", READER)
    pushed.hub.repos["zulu/model"].private = False


def unsafe_name(pushed: Pushed) -> None:
    del pushed.files["manifest.json"]
    pushed.files["../evil.json"] = pushed.files["config.json"]


def no_token(pushed: Pushed) -> None:
    pushed.patch.delenv("HF_TOKEN")


def fault(pattern: str, status: int) -> Callable[[Pushed], None]:
    return lambda pushed: pushed.hub.faults.append(Fault(pattern, status, times=100))


PULL, PUSH, LS = f"pull {REPO} out", f"push model {REPO}", f"ls {REPO}"
AUTH, FAILURE, USAGE = ExitCode.AUTH, ExitCode.FAILURE, ExitCode.USAGE


@pytest.mark.parametrize(
    ("prepare", "words", "code", "message", "hint"),
    [
        (no_token, PULL, AUTH, "is private or does not exist, and HF_TOKEN is not set", "export HF_TOKEN"),
        (no_token, "push model hf://zulu/new", AUTH, "HF_TOKEN is not set", "export HF_TOKEN"),
        (lambda pushed: pushed.patch.setenv("HF_TOKEN", "planted"), LS, AUTH, "does not accept HF_TOKEN", "export HF_"),
        (read_only, f"{PUSH} --public", AUTH, "HF_TOKEN may not write it", "a token that may write it"),
        (None, "pull hf://zulu/nothing x", FAILURE, "hf://zulu/nothing does not exist", "HF_TOKEN"),
        (None, f"{LS}@v9", FAILURE, "no such revision", "bafogpt storage ls hf://zulu/model"),
        (lambda pushed: pushed.patch.setattr(Handler, "_repo", gated), PULL, AUTH, "is gated", "/zulu/model"),
        (fault(r"GET /api/models", 503), LS, FAILURE, "the Hub returned 503", "repeat the command"),
        (
            lambda pushed: pushed.patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9"),
            *(LS, FAILURE, "cannot be reached", "check the network"),
        ),
        (fault(r"POST .*/commit/", 412), PUSH, FAILURE, "changed by another commit", "repeat the command"),
        (None, "ls hf://model", USAGE, "not a repository of the Hub", "hf://ORG/NAME"),
        (None, f"gc {REPO}", USAGE, "'storage gc' works on buckets, not on the Hub", "s3://"),
        (unsafe_name, PULL, FAILURE, "unsafe file name '../evil.json'", "do not use what this manifest lists"),
    ],
)
def test_an_error_of_the_hub_is_two_lines_without_a_token(
    pushed: Pushed,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Pushed], None] | None,
    words: str,
    code: ExitCode,
    message: str,
    hint: str,
):
    if prepare is not None:
        prepare(pushed)
    assert main(["storage", *words.split()]) == code
    shown = capsys.readouterr()
    error, next_step = shown.err.strip().splitlines()[-2:]
    assert error.startswith("error: ") and message in error
    assert next_step.startswith(" hint: ") and hint in next_step
    assert not [secret for secret in (TOKEN, READER, "planted") if secret in shown.err + shown.out]
    assert not Path("out", "config.json").exists() and not Path("evil.json").exists()
    assert set(pushed.hub.repos) == {"zulu/model"}


def test_a_connection_that_is_cut_while_the_store_sends(pushed: Pushed):
    (pushed.model / "config.json").write_bytes(pushed.files["config.json"].content)
    pushed.hub.faults = [Fault(r"GET /cdn/", 0), Fault(r"GET /cdn/", 503)]
    assert main(["storage", "pull", REPO, "back"]) == 0
    assert content(Path("back")) == content(pushed.model)


def test_no_token_is_ever_in_a_file(pushed: Pushed, settings: Settings):
    for path in Path(settings.home).rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert os.environ["HF_TOKEN"] == TOKEN
