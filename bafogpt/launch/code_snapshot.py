"""The code that a launch sends, and its version: a commit, or the working tree with its uncommitted changes.

Files that git ignores (datasets, environments) are not sent.
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
"""More than this is data, not code."""


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """The version of the code in a folder."""

    commit: str
    """Empty outside a repository."""
    changes: str = ""
    """First 12 hexadecimal digits of the SHA-256 of the uncommitted changes; empty without any."""

    def __str__(self) -> str:
        """``COMMIT`` or ``COMMIT+dirty.DIGEST``, as in records."""
        return f"{self.commit}+dirty.{self.changes}" if self.changes else self.commit


def current_version(root: Path) -> CodeVersion:
    """The version of the code in ``root``, without a commit outside a repository or without git."""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        changed = _git(root, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--", ".")
        new = _names(root, "--others", ".")
    except (FileNotFoundError, subprocess.SubprocessError):
        return CodeVersion(commit="")
    digest = hashlib.sha256(changed)
    for name in sorted(new):
        with contextlib.suppress(OSError):  # deleted meanwhile
            digest.update(b"\0" + name.encode() + b"\0" + hashlib.sha256((root / name).read_bytes()).digest())
    return CodeVersion(commit=commit, changes=digest.hexdigest()[:12] if changed or new else "")


def require_clean(root: Path) -> None:
    """Raise :class:`UsageError` unless ``root`` is a commit without changes."""
    version = current_version(root)
    if not version.commit:
        raise UsageError(f"--clean: {root} is not in a git repository", "git init")
    if version.changes:
        raise UsageError(f"--clean: {root} has changes that are not committed", "git status")


def export(root: Path, into: Path) -> Path:
    """Copy the code in ``root`` to ``into``: the commit, or with changes the working tree.

    Returns ``into``, or ``root`` itself outside a repository. Raises :class:`ConfigError` for a file that cannot be
    read and for more than :data:`MAX_BYTES`.
    """
    version = current_version(root)
    if not version.commit:
        return root
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    if version.changes:
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
    """Copy the tracked files and the untracked ones that are not ignored."""
    paths = [root / name for name in _names(root, "--cached", "--others")]
    sources = [path for path in paths if path.is_file() or path.is_symlink()]  # not those that were removed
    if sum(path.lstat().st_size for path in sources) > MAX_BYTES:
        raise ConfigError(f"{root} has more than {MAX_BYTES >> 20} MB of files to send", "git status; edit .gitignore")
    for source in sources:
        target = into / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(source, target, follow_symlinks=False)
        except OSError as error:
            raise ConfigError(f"{source} cannot be sent: {error.strerror}", f"ls -l {source}") from None


def _names(root: Path, *which: str) -> list[str]:
    """Names from ``git ls-files``, without ignored files."""
    output = _git(root, "ls-files", "-z", "--exclude-standard", *which).decode()
    return [name for name in output.split("\0") if name]


def _git(root: Path, *words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=True, timeout=GIT_TIMEOUT_S)
    return done.stdout


def describe_change(record: RunRecord, root: Path) -> str:
    """How the code in ``root`` differs from the run's, as a sentence; empty when it does not."""
    if not record.git:
        return f"the code of {record.name} is unknown"
    here = str(current_version(root))
    if here == record.git:
        return ""
    return f"the code differs from that of {record.name}: then {_short(record.git)}, here {_short(here) or 'no commit'}"


def _short(version: str) -> str:
    commit, plus, changes = version.partition("+")
    return f"{commit[:10]}{plus}{changes}"
