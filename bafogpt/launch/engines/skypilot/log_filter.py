"""SkyPilot's log streams: a job's as the run's own lines; a launch's without tracebacks, with the clouds' refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TextIO

from bafogpt.launch.engines.skypilot.errors import strip_ansi

_PREFIX = re.compile(r"^\((?:head|worker\d+|[^(),]+)(?:, rank=\d+)?(?:, pid=\d+)?(?:, ip=[^)]*)?\) ?")
_REMARK = re.compile(
    r"^(Job ID not provided|Start streaming logs for|Streaming logs of|[├└]── |✓ Job finished|✓ Managed job finished"
    r"|⚙︎ |srun: |slurmstepd-\S+: |INFO: Tip: )"
)
_LOG = re.compile(r"[WE] \d\d-\d\d [\d:.]+ PID=\d+ \S+\] ?")
_REFUSED = re.compile(r"\brun_instances error: (.+)")


class LogFilter:
    """A stream that passes on SkyPilot's output of a launch without tracebacks and keeps the clouds' refusals.

    A terminal gets colours and spinners; a file or a pipe gets whole lines without them.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._terminal = out, out.isatty()
        self._line, self._shown = "", 0
        self._in_traceback = False
        self.refusals: list[str] = []
        """The clouds' messages, in the order of the requests."""

    def write(self, text: str) -> int:
        for piece in re.findall(r"[^\n]*\n|[^\n]+", text):
            self._line += piece
            plain, whole = strip_ansi(self._line), piece.endswith("\n")
            if whole or (self._terminal and not _LOG.match(plain)):  # a spinner never ends its line
                if self._shown or not self._is_traceback(plain):
                    last = plain.rstrip("\r\n").rpartition("\r")[2] + "\n"
                    self._out.write(self._line[self._shown :] if self._terminal else last)
                self._shown = len(self._line)
            if whole:
                self.refusals += [match[1].strip() for match in [_REFUSED.search(plain)] if match]
                self._line, self._shown = "", 0
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def _is_traceback(self, plain: str) -> bool:
        """Whether a line is part of a traceback, whose every line SkyPilot logs as a line of its own."""
        log = _LOG.match(plain)
        begins = log is not None and plain[log.end() :].startswith("Full traceback:")
        self._in_traceback = begins or (self._in_traceback and bool(log) and not _REFUSED.search(plain))
        return self._in_traceback


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """The task's own lines, without SkyPilot's prefixes and remarks; a chunk may hold several lines, or part of one."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from _own(whole)
    yield from _own([rest] if rest else [])


def _own(raw: Iterable[str]) -> Iterator[str]:
    for each in raw:
        text = strip_ansi(each).rstrip("\r")
        stripped = _PREFIX.sub("", text, count=1)
        if stripped != text or not _REMARK.match(text):
            yield stripped
