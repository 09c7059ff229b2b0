"""The command line's page in the docs, and help that says all there is to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.cli import gen_docs

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_is_what_the_commands_say_of_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # put back afterwards, whatever the page sets it to

    assert gen_docs.markdown() == PAGE.read_text(encoding="utf-8"), "./scripts/cli-reference"


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_a_jobs_own_command_takes_what_launch_takes(cli, job):
    launch, short = (cli("cloud", word, "--help").out.partition("Options:")[2] for word in ("launch", job))

    assert "--set KEY=VALUE" in short
    assert short == launch


def test_help_shows_the_whole_first_sentence_of_each_command(cli):
    said = " ".join(cli("cloud", "--help").out.split())

    assert "on demand and spot, in dollars and rand." in said
    assert "..." not in said.partition("Commands:")[2]
