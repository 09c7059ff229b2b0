"""What the stand-in Hub keeps: repositories, their commits and files; faults; a gate that stops the traffic."""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class File:
    """A file of a commit: small ones hold their content, large ones its sha256."""

    content: bytes = b""
    sha256: str = ""
    size: int = 0

    @property
    def oid(self) -> str:
        """Git's id; of a large file, git's id of its pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        data = pointer if self.sha256 else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File]) -> str:
        name = secrets.token_hex(20)
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """Answer requests whose ``METHOD path`` matches with ``status`` (0: close the connection), ``times`` times."""

    pattern: str
    status: int
    times: int = 1


class Gate:
    """Counts the bytes of each direction, and can stop the traffic so that a test can kill a client at that point."""

    def __init__(self) -> None:
        self.up = self.down = 0
        self.held = threading.Event()
        """Set when :meth:`hold_after` has stopped the traffic."""
        self._hold_at: int | None = None
        self._released = threading.Event()
        self.lock = threading.Lock()

    def hold_after(self, count: int) -> None:
        """Stop the traffic once ``count`` more bytes have passed, until :meth:`release`."""
        self.held.clear()
        self._released.clear()
        self._hold_at = self.up + self.down + count

    def release(self) -> None:
        self._hold_at = None
        self._released.set()

    def passed(self, *, up: int = 0, down: int = 0) -> None:
        """Count bytes, and wait while the traffic is stopped."""
        with self.lock:
            self.up += up
            self.down += down
            stop = self._hold_at is not None and self.up + self.down >= self._hold_at
        if stop:
            self.held.set()
            self._released.wait(60)
