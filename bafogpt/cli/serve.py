"""``bafogpt serve MODEL``: a model over HTTP, for OpenAI's clients."""

from __future__ import annotations

from typing import Annotated

import typer

from bafogpt.cli.console.options import DeviceOption, DtypeOption, ModelArgument, OwnTokenizerOption, StyleOption
from bafogpt.cli.console.output import Output

app = typer.Typer(add_completion=False, help="Answer OpenAI's clients over HTTP.")

HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on; 0 takes a free one.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must give."),
]
SlotsOption = Annotated[int, typer.Option("--slots", metavar="N", min=1, help="Answers that are made at a time.")]
QueueOption = Annotated[
    int, typer.Option("--queue", metavar="N", min=0, help="Requests that may wait; one more gets 429.")
]
LongestOption = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer; default: what the model has room for."),
]


@app.command()
def serve_command(
    model: ModelArgument,
    tokenizer: OwnTokenizerOption = None,
    style: StyleOption = "chat",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key_env: KeyOption = None,
    slots: SlotsOption = 2,
    queue: QueueOption = 64,
    max_tokens: LongestOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Answer /v1/chat/completions (streaming too), /v1/models and /health until Ctrl-C."""
    from bafogpt.serve import server
    from bafogpt.serve.app import Limits

    limits = Limits(slots=slots, queue=queue, max_tokens=max_tokens)
    key = server.read_key(api_key_env)
    listening = server.listen(host, port, guarded=key is not None)
    from bafogpt.model.chat_model import ChatModel

    chat_model = ChatModel.load(model, tokenizer=tokenizer, style=style, device=device, dtype=dtype)
    Output.of().event({}, f"{chat_model.name} at {server.address(listening)}/v1")
    server.serve(chat_model, listening, limits, key)
