"""As much GraphQL as clients of the pod cloud write: one operation, arguments in place, no variables or fragments.

The grammar is that of the GraphQL specification (October 2021), sections 2.1 to 2.9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r"""[\s,]*(?:\#[^\n]*[\s,]*)*
    (?P<token> "(?:\\.|[^"\\])*" | [A-Za-z_]\w* | -?\d+(?:\.\d+)?(?:[eE][+-]?\d+)? | [{}()\[\]:] )""",
    re.VERBOSE,
)
CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}


class GraphQLError(Exception):
    """What the API answers in ``errors``."""


@dataclass(frozen=True)
class Field:
    """One field of a selection."""

    arguments: dict[str, Any]
    below: Selection | None


Selection = dict[str, Field]


class Parser:
    """A document, token by token."""

    def __init__(self, document: str) -> None:
        self.tokens: list[str] = []
        at = 0
        while document[at:].strip(" \t\r\n,"):
            match = TOKEN.match(document, at)
            if match is None:
                raise GraphQLError(f"Syntax Error: unexpected {document[at : at + 20].strip()!r}")
            self.tokens.append(match["token"])
            at = match.end()
        self.at = 0

    def operation(self) -> Selection:
        """The selection of the document's one operation."""
        if self._next() in ("query", "mutation"):
            self.at += 1
            if self._next() != "{":
                self.at += 1  # its name
        selection = self._selection()
        if self.at < len(self.tokens):
            raise GraphQLError(f"Syntax Error: unexpected {self._next()!r}")
        return selection

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._next()
        if not token or (wanted and token != wanted):
            raise GraphQLError(f"Syntax Error: expected {wanted or 'more'}, found {token or 'the end'!r}")
        self.at += 1
        return token

    def _selection(self) -> Selection:
        found: Selection = {}
        self._take("{")
        while self._next() != "}":
            name = self._take()
            arguments = self._pairs("(", ")") if self._next() == "(" else {}
            found[name] = Field(arguments, self._selection() if self._next() == "{" else None)
        self._take("}")
        return found

    def _pairs(self, begin: str, end: str) -> dict[str, Any]:
        found = {}
        self._take(begin)
        while self._next() != end:
            name = self._take()
            self._take(":")
            found[name] = self._value()
        self._take(end)
        return found

    def _value(self) -> Any:
        if self._next() == "{":
            return self._pairs("{", "}")
        token = self._take()
        if token == "[":
            items = []
            while self._next() != "]":
                items.append(self._value())
            self._take("]")
            return items
        if token[0] == '"' or token[0] in "-0123456789":
            return json.loads(token, strict=False)
        return CONSTANTS.get(token, token)  # else the name of an enum's value


def parse(document: str) -> Selection:
    """What a document asks for.

    Raises:
        GraphQLError: it is not understood
    """
    return Parser(document).operation()


def select(data: Any, below: Selection | None) -> Any:
    """Exactly the selected fields of ``data``; a field that is not there is the error it is at the real API."""
    if below is None or data is None:
        return data
    if isinstance(data, list):
        return [select(each, below) for each in data]
    assert isinstance(data, Mapping)
    if unknown := [name for name in below if name not in data]:
        raise GraphQLError(f'Cannot query field "{unknown[0]}".')
    return {name: select(data[name], field.below) for name, field in below.items()}
