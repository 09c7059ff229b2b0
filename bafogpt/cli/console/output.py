"""Where every command prints.

Results go to stdout, messages to stderr. ``--json`` prints objects, one per line; ``--quiet`` prints ids, one per line,
and no messages; both together print objects and no messages. Colour, tables and bars are for terminals only, and
``NO_COLOR`` is honoured. Rich is imported only to draw.
"""

from __future__ import annotations

import dataclasses
import json as json_module
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from bafogpt.cli.console import progress as progress_styles
from bafogpt.cli.console.options import JsonOption, QuietOption
from bafogpt.core import schema
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = Mapping[str, Any]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
"""ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command prints; a group of the options ``--json`` and ``--quiet``."""

    json: JsonOption = False
    quiet: QuietOption = False
    clock: Callable[[], float] = time.monotonic
    """Seconds, for progress lines."""

    def result(self, record: Record, text: RenderableType | None = None, id: str = "") -> None:  # noqa: A002
        """Print the result of a command.

        People see ``text`` (a string is printed unchanged) or, without it, the record as keys and values; ``--json``
        prints the record; ``--quiet`` prints ``id``.
        """
        if self.json:
            self._object(record)
        elif self.quiet:
            if id:
                print(id)
        else:
            _draw(_listing(record) if text is None else text)

    def rows(self, records: Iterable[Record], columns: Sequence[str] | Mapping[str, str], id: str) -> None:  # noqa: A002
        """Print a table of the keys ``columns`` (or a mapping from keys to titles) of ``records``.

        ``--json`` prints whole records, ``--quiet`` the key ``id`` of each. No records print nothing.
        """
        if self.json:
            for record in records:
                self._object(record)
        elif self.quiet:
            for record in records:
                print(_cell(record[id]))
        else:
            cells = [[_cell(record.get(column)) for column in columns] for record in records]
            titles = [t.upper() for t in (columns.values() if isinstance(columns, Mapping) else columns)]
            if cells:
                _draw(_table(titles, cells) if sys.stdout.isatty() else _aligned(titles, cells))

    def event(self, record: Record, text: str) -> None:
        """Print one item of a stream at once: a line of ``text``, or the record as JSON."""
        if self.json:
            self._object(record)
        elif not self.quiet:
            print(text)
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print a message on stderr; nothing with ``--quiet``."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def progress(
        self, label: str, total: int | None, unit: str = ""
    ) -> AbstractContextManager[progress_styles.Advance]:
        """``with out.progress("uploading", total=30, unit="shards") as advance: advance(1)``.

        ``total`` None is unknown; the unit ``"B"`` is shown in megabytes.
        """
        if self.quiet or self.json:
            return progress_styles.silent()
        if sys.stderr.isatty():
            return progress_styles.bar(label, total, unit)
        return progress_styles.lines(label, total, unit, self.clock)

    def confirm(self, question: str, yes: bool) -> bool:
        """Ask a yes-or-no question; ``yes`` (``--yes``) answers it. An empty answer means no.

        Raises :class:`UsageError` without a terminal to ask on.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"no terminal to ask on: {question}", "add --yes")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _object(self, record: Record) -> None:
        print(json_module.dumps(_finite(record), ensure_ascii=False, default=_plain, allow_nan=False))


def _draw(what: RenderableType) -> None:
    """Print a string unchanged, anything else as Rich draws it (plain text without a terminal)."""
    if isinstance(what, str):
        print(what)
        return
    from rich.console import Console

    Console().print(what, soft_wrap=not sys.stdout.isatty())


def _listing(record: Record) -> str:
    """Keys and values, one per line; nested keys have dots."""
    flat = schema.flatten(record)
    width = max(map(len, flat), default=0)
    return "\n".join(f"{key:<{width}}  {_cell(value)}" for key, value in flat.items())


def _table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup
    return table


def _aligned(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns of any width, for pipes and logs."""
    lines = [header, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _cell(value: Any) -> str:
    """A value for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_cell(item) for item in value) or "-"
    return str(value)


def _finite(value: Any) -> Any:
    """``value`` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """A value that :mod:`json` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
