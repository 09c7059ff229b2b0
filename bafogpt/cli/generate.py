"""``bafogpt generate MODEL --prompt …``: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bafogpt.cli.chat import read_stdin
from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import JsonOption, ModelArgument, ModelFlags, SamplingFlags
from bafogpt.cli.console.output import Output

app = App(add_completion=False, help="Continue a text with a model.")


@app.command()
def generate_command(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue; - reads stdin.")],
    options: ModelFlags,
    sampling: SamplingFlags,
    json: JsonOption = False,
) -> None:
    """Continue a text with a model and print it as it is generated.

    The model gets the text alone, without a prompt style. With --json, one object is printed at the end: the text and
    the reason why it ends.
    """
    chosen = sampling.sampling
    chat_model = options.load(model, "plain")
    ids = chat_model.text(read_stdin(sys.stdin.read) if prompt == "-" else prompt)
    length = min(256, chat_model.room(ids)) if sampling.max_tokens is None else sampling.max_tokens
    pieces = []
    for piece in chat_model.answer(ids, max_tokens=length, sampling=chosen, stop=sampling.stop or []):
        pieces.append(piece)
        if not json:
            print(piece.text, end="", flush=True)
    if json:
        text, finish = "".join(piece.text for piece in pieces), pieces[-1].finish
        Output(json=True).result({"text": text, "finish": finish, "prompt_tokens": len(ids)})
    else:
        print()
