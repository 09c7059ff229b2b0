"""A copy of the project to plant mistakes in, and stand-ins for the commands that its scripts call."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = (".github", ".ci", "docker", "scripts", "jobs", "sky", "docs", "bafogpt")
SETUP = "#!/usr/bin/env bash\nset -euo pipefail\n# everything is installed already, and must stay so\n"
RECORDER = """#!/usr/bin/env bash
set -euo pipefail
name=$(basename "$0")
printf '%s' "$name" >>"{calls}"
printf ' %q' "$@" >>"{calls}"
printf '\\n' >>"{calls}"
{body}
"""


def copy_project(target: Path) -> Path:
    """The files that the scripts look at, without the environment; ``scripts/setup`` there does nothing."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=unwanted)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # in a linked worktree a file, and it leads to the real repository
            shutil.copy2(path, target / path.name)
    (target / "scripts" / "setup").write_text(SETUP)
    return target


@dataclass
class Tree:
    """A copy of the project with stand-ins of its own on the PATH; every call of one of those is recorded."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        copy_project(self.root)
        (self.root / ".venv" / "bin").mkdir(parents=True)
        (self.root / ".stand-ins").mkdir()
        self.environment = {
            "PATH": f"{self.root / '.stand-ins'}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "GITHUB_OUTPUT": str(self.root / ".output"),
            "GITHUB_STEP_SUMMARY": str(self.root / ".summary"),
        }

    def stand_in(self, name: str, body: str = "") -> None:
        """Put a recording ``name`` on the PATH, or at its place when it is a path; ``body`` is what it does then."""
        path = self.root / name if "/" in name else self.root / ".stand-ins" / name
        path.write_text(RECORDER.format(calls=self.root / ".calls", body=body))
        path.chmod(0o755)

    def bafogpt(self, body: str = "") -> None:
        """The command of the environment: what the scripts call it as."""
        self.stand_in(".venv/bin/bafogpt", body)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the copy, with output and errors as one text."""
        return subprocess.run(
            words,
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        return subprocess.run(
            ["git", *identity, *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self) -> str:
        """Make the copy a repository of one commit, and return that commit."""
        self.git("init", "-q", "-b", "main")
        (self.root / ".git" / "info" / "exclude").write_text(".stand-ins/\n.calls\n.output\n.summary\n.gitconfig\n")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "all")
        return self.git("rev-parse", "HEAD")

    @property
    def calls(self) -> list[str]:
        path = self.root / ".calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def summary(self) -> str:
        path = self.root / ".summary"
        return path.read_text() if path.exists() else ""

    @property
    def output(self) -> dict[str, str]:
        """What the step has said to those after it."""
        path = self.root / ".output"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.split("=", 1) for line in lines)
