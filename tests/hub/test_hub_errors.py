"""What the Hub refuses, in two lines and with the right exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bafogpt.cli.main import main
from bafogpt.core.errors import ExitCode
from bafogpt.core.settings import Settings

from .conftest import REPO, Copy, content
from .server import TOKEN, Handler, Hub, Refused
from .state import Fault

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client, not ours
READER = "hf_reads-only"


@pytest.fixture
def pushed(hub: Hub, copy: Copy, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A private repository on the Hub."""
    copy(model, REPO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    return hub


def says(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: ExitCode, message: str, hint: str) -> None:
    """``bafogpt storage WORDS`` ends with that code and two lines that hold those texts, and no token."""
    assert main(["storage", *words]) == code
    shown = capsys.readouterr()
    error, next_step = shown.err.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert next_step.startswith(" hint: ")
    assert hint in next_step
    for secret in (TOKEN, READER, "planted"):
        assert secret not in shown.err + shown.out


def test_a_private_repository_without_a_token(pushed: Hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    words = ("pull", REPO, "there")
    says(capsys, words, ExitCode.AUTH, "is private or does not exist, and HF_TOKEN is not set", "export HF_TOKEN")
    assert not Path("there").exists()


def test_a_push_without_a_token(pushed: Hub, capsys, monkeypatch, model):
    monkeypatch.delenv("HF_TOKEN")
    says(capsys, ("push", str(model), "hf://zulu/new"), ExitCode.AUTH, "HF_TOKEN is not set", "export HF_TOKEN")
    assert "zulu/new" not in pushed.repos


def test_a_token_that_the_hub_does_not_know(pushed: Hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "planted")
    says(capsys, ("ls", REPO), ExitCode.AUTH, "the Hub does not accept HF_TOKEN", "export HF_TOKEN")


def test_a_token_that_may_only_read(pushed: Hub, capsys, monkeypatch, model):
    monkeypatch.setenv("HF_TOKEN", READER)
    pushed.repos["zulu/model"].private = False
    (model / "config.json").write_text("other")
    words = ("push", str(model), REPO, "--public")
    says(capsys, words, ExitCode.AUTH, "HF_TOKEN may not write it", "a token that may write it")


def test_a_repository_that_is_not_there(pushed: Hub, capsys):
    says(capsys, ("pull", "hf://zulu/nothing", "x"), ExitCode.FAILURE, "hf://zulu/nothing does not exist", "HF_TOKEN")


def test_a_revision_that_is_not_there(pushed: Hub, capsys):
    says(capsys, ("ls", f"{REPO}@v9"), ExitCode.FAILURE, "no such revision", "bafogpt storage ls hf://zulu/model")


def test_a_gated_repository(pushed: Hub, capsys, monkeypatch):
    def gated(*_: object) -> None:
        raise Refused(403, "GatedRepo", "Access to model is restricted")

    monkeypatch.setattr(Handler, "_repo", gated)
    says(capsys, ("pull", REPO, "x"), ExitCode.AUTH, "is gated", f"{pushed.url}/zulu/model")


def test_a_hub_that_is_down(pushed: Hub, capsys):
    pushed.faults = [Fault(r"GET /api/models", 503, times=100)]
    says(capsys, ("ls", REPO), ExitCode.FAILURE, "the Hub answers 503", "give the same command again")


def test_a_hub_that_cannot_be_reached(pushed: Hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    says(capsys, ("ls", REPO), ExitCode.FAILURE, "cannot be reached", "check the network")


def test_a_connection_that_is_cut_while_the_store_sends(pushed: Hub, capsys, tmp_path, model):
    pushed.faults = [Fault(r"GET /cdn/", 0), Fault(r"GET /cdn/", 503)]
    assert main(["storage", "pull", REPO, str(tmp_path / "back")]) == 0
    assert content(tmp_path / "back") == content(model)


def test_a_commit_by_somebody_else_meanwhile(pushed: Hub, capsys, model):
    (model / "config.json").write_text("other")
    pushed.faults = [Fault(r"POST .*/commit/", 412)]
    says(capsys, ("push", str(model), REPO), ExitCode.FAILURE, "changed by another commit", "the same command again")


def test_names_of_no_repository(pushed: Hub, capsys):
    says(capsys, ("ls", "hf://model"), ExitCode.USAGE, "not a repository of the Hub", "hf://ORG/NAME")


def test_the_hub_has_no_garbage_of_ours(pushed: Hub, capsys):
    says(capsys, ("gc", REPO), ExitCode.USAGE, "the Hub looks after its own storage", "s3://")


def test_a_name_on_the_hub_that_would_leave_the_folder(pushed: Hub, capsys, tmp_path):
    repo = pushed.repos["zulu/model"]
    files = repo.commits[repo.branches["main"]]
    del files["manifest.json"]
    files["../evil.json"] = files["config.json"]
    words = ("pull", REPO, str(tmp_path / "x"))
    says(capsys, words, ExitCode.FAILURE, "unsafe file name '../evil.json'", "do not use what this manifest lists")
    assert not (tmp_path / "evil.json").exists()


def test_no_token_is_ever_on_a_command_line_or_in_a_file(pushed: Hub, settings: Settings):
    for path in Path(settings.home).rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert os.environ["HF_TOKEN"] == TOKEN
