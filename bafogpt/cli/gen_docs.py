"""The command line's reference, ``docs/cli.md``, from the commands' own help: ``python -m bafogpt.cli.gen_docs``."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Sequence
from typing import Any

import typer

from bafogpt.cli import main

WIDTH = "80"


def markdown() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = WIDTH
    parts = [
        "# The command line",
        "Made by `./scripts/cli-reference` from what each command says with `--help`.",
        _help(),
    ]
    for group in main.COMMANDS:
        parts += [f"## bafogpt {group}", _help(group)]
        command: Any = typer.main.get_command(importlib.import_module(f"bafogpt.cli.{group}").app)
        for name in getattr(command, "commands", ()):
            parts += [f"### bafogpt {group} {name}", _help(group, name)]
    return "\n\n".join(parts) + "\n"


def _help(*words: str) -> str:
    """What ``bafogpt WORDS… --help`` prints, as a block."""
    return f"```text\n{_said([*words, '--help'])}\n```"


def _said(words: Sequence[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main.main(words)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    print(markdown(), end="")
