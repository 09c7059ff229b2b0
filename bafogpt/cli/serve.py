"""``bafogpt serve MODEL``: serve a model over HTTP, with OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import ModelArgument, ModelFlags, StyleOption
from bafogpt.cli.console.output import Output

app = App(add_completion=False, help="Serve a model over HTTP, with OpenAI's API.")


@app.command()
def serve_command(
    model: ModelArgument,
    options: ModelFlags,
    style: StyleOption = "chat",
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env", metavar="NAME", help="Require the API key in environment variable NAME from clients."
        ),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", metavar="N", min=1, help="Requests answered at the same time.")] = 2,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Requests that may wait; further ones get status 429.")
    ] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=1, help="Generate at most N tokens per answer. Default: up to the context."
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C: /v1/chat/completions (with streaming), /v1/models and /health."""
    from bafogpt.serve import server
    from bafogpt.serve.app import ServeLimits

    limits = ServeLimits(slots=slots, queue=queue, max_tokens=max_tokens)
    key = server.read_key(api_key_env)
    listening = server.listen(host, port, guarded=key is not None)
    chat_model = options.load(model, style)
    Output().event({}, f"{chat_model.name} at {server.address(listening)}/v1")
    server.serve(chat_model, listening, limits, key)
