"""The root of the command line: the list of sub-commands, and the entry point."""

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
    "job": "Commands that tasks run on a launched machine.",
    "runs": "Show runs: state, logs, cost, report; compare them, run them again.",
    "data": "Turn text into datasets of tokens, and show them.",
    "tokenizer": "Extend a tokenizer for another language, train one, compare them.",
    "model": "Pull, publish, export, merge, expand and show models.",
    "storage": "Copy models, datasets and checkpoints to and from buckets and the Hub; run a local S3 server.",
    "generate": "Continue a text with a model.",
    "chat": "Chat with a model in the terminal.",
    "serve": "Serve a model over HTTP, with OpenAI's API.",
    "image": "Show, check and pin the container image that tasks run in.",
    "config": "Show settings and where each comes from.",
}
"""The sub-commands and their help. ``app`` of module ``bafogpt.cli.NAME`` is imported when the command is called."""

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failure, 2 wrong usage, 4 not authenticated, 100 job failed, 101 job not finished, "
    "102 no such job, 103 job cancelled, 104 limit of cost or time reached, 105 machine cannot run the job, "
    "130 interrupted."
)


class Group(TyperGroup):
    """Lists its commands with the whole first sentence of their help, which Typer would truncate."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(Group):
    """Lists the sub-commands without importing them, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in COMMANDS.items():
            self.add_command(Group(name=name, help=text, rich_markup_mode=self.rich_markup_mode))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the placeholder by the real command. Typer adds "did you mean" to an unknown word."""
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
    """Whether an app is one command (``bafogpt chat``), not a group: it has one command without a name."""
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
    """Run the command line ``words`` (default: the process's own) and return the exit code.

    ``--debug`` may stand anywhere.
    """
    words = list(sys.argv[1:] if words is None else words)
    own = errors.own_words(words)
    debug = "--debug" in own or os.environ.get("BAFOGPT_DEBUG", "") not in ("", "0")
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    command = typer.main.get_command(app)
    return errors.guard(lambda: command(args=words, prog_name="bafogpt", standalone_mode=False), words, debug)


if __name__ == "__main__":
    sys.exit(main())
