"""The code that a launch sends: a commit as it is, or the working tree with what is not committed, under a name.

``git`` ignores decide what is sent; a data set or an environment in the folder never is.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from bafogpt.core.errors import ConfigError, UsageError
from bafogpt.runs.store import RunRecord

GIT_TIMEOUT_S = 60.0
MAX_BYTES = 256 * 2**20
"""More than this is data that nobody meant to send with the code."""


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """Which code a folder holds."""

    commit: str
    """Empty outside a repository."""
    changes: str = ""
    """First 12 hexadecimal digits of the SHA-256 of what differs from the commit; empty when nothing does."""

    def __str__(self) -> str:
        """``COMMIT`` or ``COMMIT+dirty.DIGEST``, as records write it."""
        return f"{self.commit}+dirty.{self.changes}" if self.changes else self.commit


def current_version(root: Path) -> CodeVersion:
    """The code in ``root``; outside a repository, or without git, one without a commit."""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        changed = _git(root, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--", ".")
        new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", ".").decode().split("\0")
    except (FileNotFoundError, subprocess.SubprocessError):
        return CodeVersion(commit="")
    digest = hashlib.sha256(changed)
    for name in sorted(filter(None, new)):
        with contextlib.suppress(OSError):  # it may just have gone
            digest.update(b"\0" + name.encode() + b"\0" + hashlib.sha256((root / name).read_bytes()).digest())
    return CodeVersion(commit=commit, changes=digest.hexdigest()[:12] if changed or any(new) else "")


def require_clean(root: Path) -> None:
    """Raise :class:`UsageError` unless ``root`` is a commit and nothing else."""
    code = current_version(root)
    if not code.commit:
        raise UsageError(f"--clean: {root} is not in a git repository", "git init")
    if code.changes:
        raise UsageError(f"--clean: {root} has changes that are not committed", "git status")


def export(root: Path, into: Path) -> Path:
    """Fill the folder ``into`` with the code in ``root``: the commit where the tree is clean, what is there where not.

    Returns ``into``, or ``root`` itself outside a repository. Raises :class:`ConfigError` when a file cannot be read.
    """
    code = current_version(root)
    if not code.commit:
        return root
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    if code.changes:
        _copy_tree(root, into)
    else:
        _unpack_commit(root, into)
    return into


def _unpack_commit(root: Path, into: Path) -> None:
    with subprocess.Popen(["git", "archive", "--format=tar", "HEAD", "."], cwd=root, stdout=subprocess.PIPE) as archive:
        assert archive.stdout is not None
        with tarfile.open(fileobj=archive.stdout, mode="r|") as tar:
            tar.extractall(into, filter="data")
    if archive.returncode:
        raise ConfigError(f"git archive of {root} failed", f"git -C {root} archive HEAD")


def _copy_tree(root: Path, into: Path) -> None:
    """Files that git knows or would: no ignored ones, none that were removed."""
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    sent = 0
    for name in filter(None, names):
        source, target = root / name, into / name
        if source.is_file() or source.is_symlink():
            sent += source.lstat().st_size
            if sent > MAX_BYTES:
                raise ConfigError(
                    f"{root} has more than {MAX_BYTES >> 20} MB of files to send", "git status; edit .gitignore"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(source, target, follow_symlinks=False)
            except OSError as error:
                raise ConfigError(f"{source} cannot be sent: {error.strerror}", f"ls -l {source}") from None


def _git(root: Path, *words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=True, timeout=GIT_TIMEOUT_S)
    return done.stdout


def describe_change(record: RunRecord, root: Path) -> str:
    """In words, how the code in ``root`` differs from what the run was made with; empty when it does not."""
    if not record.git:
        return f"which code {record.name} ran is not known"
    here = str(current_version(root))
    if here == record.git:
        return ""
    return f"the code is not what {record.name} ran: then {_short(record.git)}, here {_short(here) or 'no commit'}"


def _short(git: str) -> str:
    commit, plus, changes = git.partition("+")
    return f"{commit[:10]}{plus}{changes}"
