"""The server's socket, key and settings."""

from __future__ import annotations

import ipaddress
import os
import socket

import uvicorn
from starlette.applications import Starlette

from bafogpt.core.errors import AuthError, UsageError
from bafogpt.model.chat_model import ChatModel
from bafogpt.serve.app import ServeLimits, make_app


def read_key(name: str | None) -> str | None:
    """The API key in the environment variable ``name``. Raises :class:`AuthError` if it is not set."""
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key:
        raise AuthError(f"the environment variable {name} is not set", f"export {name}, then start again")
    return key


def listen(host: str, port: int, *, guarded: bool) -> socket.socket:
    """A listening socket. Raises :class:`UsageError` for an address that is taken or invalid, or public
    without a key."""
    if not guarded and not _is_loopback(host):
        raise UsageError(
            f"on {host} anybody could use the model", "--api-key-env NAME, or leave out --host for this machine alone"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", "--port 0 takes a free one") from None


def serve(chat_model: ChatModel, listening: socket.socket, limits: ServeLimits, api_key: str | None) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    make_server(make_app(chat_model, limits, api_key)).run(sockets=[listening])


def make_server(app: Starlette) -> uvicorn.Server:
    """A server for the application. Answers in progress get 5 s when it stops."""
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=5)
    )


def address(listening: socket.socket) -> str:
    """``http://HOST:PORT`` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
