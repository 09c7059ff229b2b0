"""The one sink of the command line.

Results go to stdout, everything said about them to stderr. ``--json`` prints objects, one a line; ``--quiet`` prints
ids, one a line, and says nothing; both together print objects and say nothing. Colour, tables and bars are for
terminals only, and ``NO_COLOR`` is honoured. Rich is imported only when there is something for it to draw.
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
from bafogpt.core import schema
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = Mapping[str, Any]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
"""A time as records write it."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command puts what it has to show; made by :meth:`of` from the command's options."""

    json: bool = False
    quiet: bool = False
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the pace of progress lines; a test brings its own."""

    @classmethod
    def of(cls, json: bool = False, quiet: bool = False) -> Output:
        """The sink that ``--json`` and ``--quiet`` ask for."""
        return cls(json=json, quiet=quiet)

    def result(self, record: Record, text: RenderableType | None = None, id: str = "") -> None:  # noqa: A002
        """The one thing a command reports.

        People see ``text`` (printed as it is when it is a string) or, without it, the record as a listing of keys
        and values; ``--json`` prints the record; ``--quiet`` prints ``id``.
        """
        if self.json:
            self._object(record)
        elif self.quiet:
            if id:
                print(id)
        else:
            _draw(_listing(record) if text is None else text)

    def rows(self, records: Iterable[Record], columns: Sequence[str] | Mapping[str, str], id: str) -> None:  # noqa: A002
        """A table of ``records`` that shows the keys ``columns``; ``id`` is the key that ``--quiet`` prints.

        As a mapping ``columns`` gives each key the title that people read.

        ``--json`` prints whole records, one a line. No records print nothing; the command says why there are none.
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
        """One item of a stream, on its way at once: a line of ``text``, or the record as JSON."""
        if self.json:
            self._object(record)
        elif not self.quiet:
            print(text)
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A message to the person in front of the screen: stderr, and nothing under ``--quiet``."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def progress(
        self, label: str, total: int | None, unit: str = ""
    ) -> AbstractContextManager[progress_styles.Advance]:
        """``with out.progress("uploading", total=30, unit="shards") as advance: advance(1)``.

        ``total`` may be unknown (``None``); the unit ``"B"`` is shown in megabytes.
        """
        if self.quiet or self.json:
            return progress_styles.silent()
        if sys.stderr.isatty():
            return progress_styles.bar(label, total, unit)
        return progress_styles.lines(label, total, unit, self.clock)

    def confirm(self, question: str, yes: bool) -> bool:
        """Whether the person agrees; ``yes`` (``--yes``) agrees without asking, and silence means no.

        Raises :class:`UsageError` where there is no terminal to ask on, instead of waiting for ever.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"no terminal to ask on: {question}", "add --yes to agree beforehand")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _object(self, record: Record) -> None:
        print(json_module.dumps(_finite(record), ensure_ascii=False, default=_plain, allow_nan=False))


def _draw(what: RenderableType) -> None:
    """``what`` on stdout: a string as it is, anything else as Rich draws it (plainly where there is no terminal)."""
    if isinstance(what, str):
        print(what)
        return
    from rich.console import Console

    Console().print(what, soft_wrap=not sys.stdout.isatty())


def _listing(record: Record) -> str:
    """Keys and values under each other; what is nested is named with dots."""
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
        table.add_row(*(Text(cell) for cell in row))  # Text: what looks like markup is not markup
    return table


def _aligned(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Columns under each other with two spaces between, whatever the width: for pipes and logs."""
    lines = [header, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _cell(value: Any) -> str:
    """A value as people read it."""
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
    """``value`` with null for the numbers that JSON has no word for: a loss that is NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """What ``json`` cannot write, as something it can."""
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
