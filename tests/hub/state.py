"""What a Hub keeps: repositories, their commits, the files of each; and the failures a test asks for."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True)
class File:
    """A file of a commit: small ones hold their content, large ones its sha256."""

    content: bytes = b""
    sha256: str = ""
    size: int = 0

    @property
    def oid(self) -> str:
        """Git's name for it; a large file is a pointer to git."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        data = pointer if self.sha256 else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit that each branch is at."""

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
    """Answer requests whose ``METHOD path`` matches with ``status`` (0: reset the connection), ``times`` times."""

    pattern: str
    status: int
    times: int = 1
