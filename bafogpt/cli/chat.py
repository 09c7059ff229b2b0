"""``bafogpt chat MODEL``: chat with a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import (
    ModelArgument,
    ModelFlags,
    SamplingFlags,
    StyleOption,
    TemperatureOption,
    TopPOption,
)
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import DataError

app = App(add_completion=False, help="Chat with a model in the terminal.")

PROMPT = "> "


@dataclass(frozen=True, kw_only=True)
class ChatSamplingFlags(SamplingFlags):
    """The same options with defaults for a conversation."""

    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=1, help="Generate at most N tokens per answer. Default: 1024."),
    ] = None
    temperature: TemperatureOption = 0.7
    top_p: TopPOption = 0.95


@app.command()
def chat_command(
    model: ModelArgument,
    options: ModelFlags,
    sampling: ChatSamplingFlags,
    style: StyleOption = "chat",
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message at the start of the conversation.")
    ] = None,
) -> None:
    """Chat with a model in the terminal. Each line is a question; an empty line or Ctrl-D ends the chat.

    Without a terminal, every line of stdin is a question. The oldest turns are dropped when a conversation fills more
    than half of the model's context.
    """
    from bafogpt.data.messages import Message
    from bafogpt.model.chat_model import chat_turn

    chosen = sampling.sampling
    chat_model = options.load(model, style)
    Output().say(f"{chat_model.name}, {chat_model.context:,} tokens of context; an empty line ends the chat")
    history = [] if system is None else [Message("system", system)]

    def answer(prompt: list[int]) -> object:
        length = min(sampling.max_tokens or 1024, chat_model.room(prompt))
        return chat_model.answer(prompt, max_tokens=length, sampling=chosen, stop=sampling.stop or [])

    while question := _next_question():
        for text in chat_turn(chat_model, history, question, answer):  # type: ignore[arg-type]
            print(text, end="", flush=True)
        print()


def _next_question() -> str:
    """The next line; the prompt is for terminals only."""
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    return read_stdin(sys.stdin.readline).strip()


def read_stdin(read: Callable[[], str]) -> str:
    """The result of ``read``. Raises :class:`DataError` for bytes that are not UTF-8 where the locale is strict."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8: byte {error.start + 1}", "iconv -f latin1 -t utf-8") from None
