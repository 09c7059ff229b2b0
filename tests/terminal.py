"""Commands on a terminal of their own, and what is to be seen on it then."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

COLUMNS = 80
_PIECES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\s\S])")


@dataclass
class Screen:
    """A terminal that remembers all its rows; it knows what Rich writes to take something away, and nothing else."""

    columns: int = COLUMNS
    rows: list[list[str]] = field(default_factory=lambda: [[]])
    y: int = 0
    x: int = 0
    cursor: bool = True

    @classmethod
    def of(cls, text: str) -> Screen:
        """The screen after ``text``, in which a terminal has made each ``\\n`` a ``\\r\\n``."""
        screen = cls()
        for parameters, letter, sign in _PIECES.findall(text):
            if sign:
                screen._sign(sign)
            else:
                screen._control(parameters, letter)
        return screen

    def text(self) -> list[str]:
        """The rows down to the cursor; below it there is nothing."""
        assert not any("".join(row).strip() for row in self.rows[self.y + 1 :])
        return ["".join(row).rstrip() for row in self.rows[: self.y + 1]]

    def _sign(self, sign: str) -> None:
        if sign == "\r":
            self.x = 0
        elif sign == "\n":
            self._down()
        else:
            if self.x == self.columns:
                self._down()
                self.x = 0
            row = self.rows[self.y]
            row += " " * (self.x + 1 - len(row))
            row[self.x] = sign
            self.x += 1

    def _down(self) -> None:
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append([])

    def _control(self, parameters: str, letter: str) -> None:
        if letter == "A":
            self.y -= int(parameters)
        elif (parameters, letter) == ("2", "K"):
            self.rows[self.y] = []
        elif parameters == "?25":
            self.cursor = letter == "h"
        else:
            assert letter == "m", (parameters, letter)


def run(
    words: list[str],
    environment: Mapping[str, str],
    *,
    on: bytes | None = None,
    do: Callable[[int], object] = lambda _: None,
    timeout_s: float = 60,
) -> tuple[int, str]:
    """Exit code and output of ``python WORDS``. When the output contains ``on``, ``do(terminal)`` is called once."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as an interactive shell leaves it
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
            os.execve(sys.executable, [sys.executable, *words], dict(environment))  # noqa: S606 - as a shell does
        finally:
            os._exit(1)
    written, deadline = b"", time.monotonic() + timeout_s
    with contextlib.suppress(OSError):  # the terminal closes with its last program
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                written += os.read(terminal, 65536)
            if on is not None and on in written:
                do(terminal)
                on = None
    if time.monotonic() >= deadline:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return code, written.decode(errors="replace")


def ctrl_c(terminal: int) -> None:
    """Type Ctrl-C."""
    os.write(terminal, b"\x03")
