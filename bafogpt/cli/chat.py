"""``bafogpt chat MODEL``: talk with a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from bafogpt.cli.console.options import (
    DeviceOption,
    DtypeOption,
    MaxTokensOption,
    ModelArgument,
    OwnTokenizerOption,
    SeedOption,
    StopOption,
    StyleOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import DataError

app = typer.Typer(add_completion=False, help="Talk with a model.")

PROMPT = "> "


@app.command()
def chat_command(
    model: ModelArgument,
    tokenizer: OwnTokenizerOption = None,
    style: StyleOption = "chat",
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="Said to the model before.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Talk with a model: a line is a question, an empty line or Ctrl-D ends it.

    Without a terminal every line of stdin is a question. The oldest turns are forgotten where a conversation fills more
    than half of the model's positions.
    """
    from bafogpt.data.messages import Message
    from bafogpt.model.chat_model import ChatModel, chat_turn
    from bafogpt.model.generate import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    sink = Output.of()
    chat_model = ChatModel.load(model, tokenizer=tokenizer, style=style, device=device, dtype=dtype)
    sink.say(f"{chat_model.name}, {chat_model.context:,} tokens of memory; an empty line ends it")
    history = [] if system is None else [Message("system", system)]

    def answer(prompt: list[int]) -> object:
        length = min(max_tokens or 1024, chat_model.room(prompt))
        return chat_model.answer(prompt, max_tokens=length, sampling=sampling, stop=stop or [])

    while question := _read():
        for text in chat_turn(chat_model, history, question, answer):  # type: ignore[arg-type]
            print(text, end="", flush=True)
        print()


def _read() -> str:
    """The next line that is not the end; the prompt is for terminals only."""
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    return read_stdin(sys.stdin.readline).strip()


def read_stdin(read: Callable[[], str]) -> str:
    """What ``read`` takes from stdin. Raises :class:`DataError` where that is not UTF-8 and the locale is strict."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8: byte {error.start + 1}", "iconv -f latin1 -t utf-8 makes it so") from None
