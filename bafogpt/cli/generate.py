"""``bafogpt generate MODEL --prompt …``: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bafogpt.cli.chat import read_stdin
from bafogpt.cli.console.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    ModelArgument,
    OwnTokenizerOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from bafogpt.cli.console.output import Output

app = typer.Typer(add_completion=False, help="Continue a text with a model.")


@app.command()
def generate_command(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to continue; - reads stdin.")],
    tokenizer: OwnTokenizerOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Continue a text with a model, as it is and without a prompt style; every piece is shown as soon as it is known.

    With --json one object at the end: the text, and why it ends there.
    """
    from bafogpt.model.chat_model import ChatModel
    from bafogpt.model.generate import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    chat_model = ChatModel.load(model, tokenizer=tokenizer, style="plain", device=device, dtype=dtype)
    ids = chat_model.text(read_stdin(sys.stdin.read) if prompt == "-" else prompt)
    length = min(256, chat_model.room(ids)) if max_tokens is None else max_tokens
    pieces = []
    for piece in chat_model.answer(ids, max_tokens=length, sampling=sampling, stop=stop or []):
        pieces.append(piece)
        if not json:
            print(piece.text, end="", flush=True)
    if json:
        text, finish = "".join(piece.text for piece in pieces), pieces[-1].finish
        Output.of(json=True).result({"text": text, "finish": finish, "prompt_tokens": len(ids)})
    else:
        print()
