"""Requests of clients, checked, and the errors they get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from bafogpt.core.errors import UsageError
from bafogpt.data.messages import Message, Role
from bafogpt.model.generate import Sampling

UNSUPPORTED = {
    "tools": (None, []),
    "functions": (None, []),
    "n": (None, 1),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
}
"""OpenAI's fields that this server does not support, with the values that change nothing."""
MAX_STOPS = 4
"""Most stop strings in a request, as at OpenAI."""


class RequestError(Exception):
    """A refused request: HTTP status, message, and the field it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's libraries read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked ``POST /v1/chat/completions``."""

    messages: list[Message]
    model: str | None
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    @classmethod
    def parse(cls, body: bytes) -> ChatRequest:
        """Read a request's body. Raises :class:`RequestError` (400) if it is not valid."""
        try:
            content = json.loads(body.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(400, f"the body is not UTF-8: byte {error.start} is wrong") from None
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(400, "the body is not a JSON object")
        for key, neutral in UNSUPPORTED.items():
            if content.get(key) not in neutral:
                raise RequestError(400, f"'{key}' is not supported", key)
        limit = "max_completion_tokens" if content.get("max_completion_tokens") is not None else "max_tokens"
        max_tokens = _number(content, limit, int)
        if max_tokens is not None and max_tokens < 1:
            raise RequestError(400, f"{limit} is {max_tokens}; at least 1", limit)
        options = content.get("stream_options") or {}
        if not isinstance(options, dict):
            raise RequestError(400, "'stream_options' is not an object", "stream_options")
        return cls(
            messages=_messages(content.get("messages")),
            model=_word(content, "model"),
            max_tokens=max_tokens,
            sampling=_sampling(content),
            stop=_stop(content.get("stop")),
            stream=content.get("stream") is True,
            include_usage=options.get("include_usage") is True,
        )


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise RequestError(400, "'messages' is not a list with at least one message", "messages")
    messages = []
    for index, turn in enumerate(given):
        where = f"messages[{index}]"
        if not isinstance(turn, dict):
            raise RequestError(400, f"{where} is not an object", "messages")
        role: Any = "system" if turn.get("role") == "developer" else turn.get("role")
        if role not in get_args(Role):
            raise RequestError(400, f"{where}: role is {role!r}, not system, user or assistant", "messages")
        messages.append(Message(role, _content(turn.get("content"), where)))
    if messages[-1].role != "user":
        raise RequestError(400, "the last message is not the user's", "messages")
    if not messages[-1].content.strip():
        raise RequestError(400, "the last message is empty", "messages")
    return messages


def _content(given: Any, where: str) -> str:
    """A message's text: a string, or a list of text parts."""
    if isinstance(given, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in given):
        given = "".join(str(part.get("text", "")) for part in given)
    if not isinstance(given, str):
        raise RequestError(400, f"{where}: content is not text", "messages")
    if any("\ud800" <= letter <= "\udfff" for letter in given):
        raise RequestError(400, f"{where}: content has half a surrogate pair, which is no character", "messages")
    return given


def _sampling(content: Mapping[str, Any]) -> Sampling:
    temperature, top_p = _number(content, "temperature", float), _number(content, "top_p", float)
    try:
        return Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=_number(content, "top_k", int),
            seed=_number(content, "seed", int),
        )
    except UsageError as error:
        raise RequestError(400, error.message, error.message.partition(" ")[0]) from None


def _stop(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
        raise RequestError(400, "'stop' is not a text or a list of texts", "stop")
    if len(stops) > MAX_STOPS:
        raise RequestError(400, f"'stop' has {len(stops)} texts; at most {MAX_STOPS}", "stop")
    return tuple(stops)


def _number(content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    allowed = (int, float) if kind is float else (int,)
    if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
        raise RequestError(400, f"'{key}' is not {'a number' if kind is float else 'a whole number'}", key)
    return value


def _word(content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(400, f"'{key}' is not text", key)
    return value
