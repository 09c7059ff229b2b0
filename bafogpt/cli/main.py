"""The root of the command line: which sub-commands there are, and the entry point. Registration only."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bafogpt import __version__
from bafogpt.cli.console import errors

COMMANDS = {
    "cloud": "Launch training jobs, watch them, stop them.",
    "job": "What a launched machine runs: the supervisor and its trainers.",
    "runs": "Look at runs: state, logs, cost, report; compare them, run them again.",
    "data": "Make datasets of tokens from text, and look at them.",
    "tokenizer": "Continue a tokenizer for another language, make one, compare them.",
    "model": "Models in and out: pull, publish, export, merge, expand for a tokenizer, show.",
    "storage": "Models, datasets and checkpoints in buckets and on the Hub; this machine's own S3 server.",
    "generate": "Continue a text with a model.",
    "chat": "Talk with a model.",
    "serve": "Answer OpenAI's clients over HTTP.",
    "image": "The container image that the tasks run in: show, check and pin it.",
    "config": "The settings in force, and who said so.",
}
"""The sub-commands: module ``bafogpt.cli.NAME`` has an ``app``, which is imported when the command is called."""

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failure, 2 wrong usage, 4 not authenticated, 100 job failed, 101 job not finished, "
    "102 no such job, 103 job cancelled, 104 limit of money or time reached, 105 machine cannot run the job, "
    "130 interrupted."
)


class Group(TyperGroup):
    """Lists its commands with the whole first sentence of their help, where Typer would cut it off at a line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(Group):
    """Lists the sub-commands by name and help alone, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in COMMANDS.items():
            self.add_command(Group(name=name, help=text, rich_markup_mode=self.rich_markup_mode))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command in its placeholder's place; an unknown word gets "did you mean" from Typer."""
        if args and args[0] in COMMANDS:
            sub_app: typer.Typer = importlib.import_module(f"bafogpt.cli.{args[0]}").app
            sub_app.rich_markup_mode = self.rich_markup_mode
            sub_app.info.cls = Group
            command: Any
            if is_command(sub_app):
                command = typer.main.get_command(sub_app)
            else:
                command = typer.main.get_group(sub_app)
                command.no_args_is_help = True
            self.add_command(command, args[0])
        return super().resolve_command(ctx, args)


def is_command(sub_app: typer.Typer) -> bool:
    """Whether a module is one command (``bafogpt chat``) and not a group of them: it has one, without a name."""
    commands = sub_app.registered_commands
    return len(commands) == 1 and commands[0].name is None and sub_app.registered_callback is None


app = typer.Typer(
    cls=LazyGroup,
    name="bafogpt",
    epilog=EXIT_CODES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in the docs, and in half the time
    pretty_exceptions_show_locals=False,
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback (also BAFOGPT_DEBUG=1).")] = False,
) -> None:
    """Train a language model for a language the big labs skip, on machines you rent by the hour."""
    if version:
        print(f"bafogpt {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that ``words`` (default: the process's own) spell, and return the exit code.

    ``--debug`` counts wherever it stands, because that is where people add it when they are told to.
    """
    words = list(sys.argv[1:] if words is None else words)
    own = errors.own_words(words)
    debug = "--debug" in own or os.environ.get("BAFOGPT_DEBUG", "") not in ("", "0")
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    command = typer.main.get_command(app)
    return errors.guard(lambda: command(args=words, prog_name="bafogpt", standalone_mode=False), words, debug)


if __name__ == "__main__":
    sys.exit(main())
