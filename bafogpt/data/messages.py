"""Conversations as messages, and the checks of those read from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bafogpt.core.errors import did_you_mean

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    input: str = ""
    """Alpaca's ``input``: the text that an instruction refers to."""


def from_record(record: Mapping[str, Any]) -> list[Message]:
    """A line of an instruction file as messages: ``{instruction, input?, output}`` or ``{messages: […]}``.

    Raises ValueError saying which field is missing, empty or not what it should be.
    """
    if "messages" not in record:
        question = _text(record, "instruction")
        extra = _text(record, "input") if record.get("input") is not None else ""
        return _checked([Message("user", question, extra), Message("assistant", _text(record, "output"))])
    turns = record["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("'messages' is not a list of objects with 'role' and 'content'")
    messages = []
    for number, turn in enumerate(turns):
        if turn.get("role") not in get_args(Role):
            role = str(turn.get("role"))
            guess = did_you_mean(role, get_args(Role))
            raise ValueError(f"messages[{number}]: role is '{role}'{guess}, not system, user or assistant")
        messages.append(Message(turn["role"], _text(turn, "content", f"messages[{number}]: ")))
    return _checked(messages)


def _checked(messages: list[Message]) -> list[Message]:
    asked = [message.content for message in messages if message.role == "user"]
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the conversation does not end with an answer")
    if not asked or not all(text.strip() for text in asked):
        raise ValueError("the question is empty" if asked else "the conversation has no question")
    if not all(message.content.strip() for message in messages if message.role == "assistant"):
        raise ValueError("the answer is empty")
    return messages


def _text(record: Mapping[str, Any], key: str, where: str = "") -> str:
    if key not in record:
        there = ", ".join(map(repr, list(record)[:5])) or "nothing"
        raise ValueError(f"{where}no '{key}' (there is {there})")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}'{key}' is a JSON {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell it: "\ud800"
        raise ValueError(f"{where}'{key}' holds half of a surrogate pair") from None
    return value
