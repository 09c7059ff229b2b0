"""``bafogpt data`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bafogpt.cli import main as root


@pytest.fixture(autouse=True)
def a_bucket_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAFOGPT_BUCKET", f"file://{tmp_path}/bucket")
    monkeypatch.chdir(tmp_path)


def test_prepare_then_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["data", "prepare", "starter", "--tokenizer", "bytes", "--out", "data/starter"]) == 0
    shown = capsys.readouterr().out
    assert "dictionary" in shown
    assert f"wrote file://{tmp_path}/bucket/data/starter in" in shown
    assert root.main(["data", "show", "data/starter"]) == 0
    captured = capsys.readouterr()
    assert "tokenizer bytes, uint16" in captured.err
    rows = [line.split()[:2] for line in captured.out.splitlines()]
    train = list(dict.fromkeys(stage for split, stage in rows if split == "train"))
    assert train == [
        "dictionary", "translation", "transcription", "document", "news", "poem", "web", "wikipedia", "total",
    ]  # fmt: skip


def test_json_and_quiet_are_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "prepare", "starter", "--tokenizer", "bytes", "--out", f"file://{tmp_path}/bucket/x"]
    assert root.main([*words, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["url"] == f"file://{tmp_path}/bucket/x"
    assert report["stages"]["poem"]["documents"] == 10
    assert root.main(["data", "show", "x", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["splits"]["train"]["tokens"] == report["train_tokens"]
    assert root.main([*words, "--quiet", "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"file://{tmp_path}/bucket/x\n", "")
    assert root.main(["data", "show", "x", "-q"]) == 0
    assert capsys.readouterr().out == f"{shown['digest']}\n"


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["prepare", "nowhere", "-t", "bytes", "-o", "x"], 1, "nowhere does not exist"),
        (["prepare", "starter", "-t", "nowhere", "-o", "x"], 1, "no tokenizer at nowhere"),
        (["prepare", "starter", "-t", "bytes", "-o", "x", "--replay-share", "2"], 2, "replay share 2.0"),
        (["prepare", "starter", "-t", "bytes", "-o", "x", "--stage", "wen"], 1, "(did you mean 'web'?)"),
        (["instructions", "starter", "-t", "bytes", "-o", "a/b", "--context", "16"], 1, "the prompt alone has"),
        (["show", "nothing"], 1, "no dataset at"),
    ],
)
def test_mistakes_are_two_lines(
    words: list[str], code: int, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bucket").mkdir()
    assert root.main(["data", *words]) == code
    assert list((tmp_path / "bucket").iterdir()) == [], "a failed command leaves no folder"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err
    assert len(captured.err.strip().splitlines()) == 2
