"""Copies of the project for tests of its scripts, and stand-ins for the commands that the scripts call."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = (".github", ".ci", "docker", "scripts", "jobs", "sky", "docs", "bafogpt")
RECORDER = """#!/usr/bin/env bash
set -euo pipefail
printf '%s' "$(basename "$0")" >>"{calls}"
printf ' %q' "$@" >>"{calls}"
printf '\\n' >>"{calls}"
{body}
"""


def copy_project(target: Path) -> Path:
    """The project without tests and environment, and with a ``scripts/setup`` that does nothing."""
    for part in PARTS:
        shutil.copytree(ROOT / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a file in a linked worktree: it names the real repository
            shutil.copy2(path, target / path.name)
    (target / "scripts" / "setup").write_text("#!/usr/bin/env bash\nset -euo pipefail\n")
    return target


@dataclass
class Tree:
    """A copy of the project whose scripts run with stand-ins first on the PATH; each call of a stand-in is recorded."""

    root: Path
    timeout: float = 120
    environment: dict[str, str] = field(init=False)

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

    def link_venv(self) -> None:
        """Give the copy the real environment."""
        shutil.rmtree(self.root / ".venv")
        (self.root / ".venv").symlink_to(ROOT / ".venv")

    def stand_in(self, name: str, body: str = "") -> None:
        """Put a recording ``name`` on the PATH, or at its path; it then runs the shell script ``body``."""
        path = self.root / name if "/" in name else self.root / ".stand-ins" / name
        path.write_text(RECORDER.format(calls=self.root / ".calls", body=body))
        path.chmod(0o755)

    def bafogpt(self, body: str = "") -> None:
        self.stand_in(".venv/bin/bafogpt", body)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the copy; stdout holds its errors, too."""
        return subprocess.run(
            words,
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.timeout,
        )

    def passes(self, *words: str, **environment: str) -> str:
        """Output of a script that must succeed."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refused(self, *words: str, **environment: str) -> str:
        """Output of a script that must fail with exit code 1."""
        done = self.run(*words, **environment)
        assert done.returncode == 1, done.stdout
        return done.stdout

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        done = subprocess.run(
            ["git", *who, *words], cwd=self.root, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> None:
        """Make the copy a repository of one commit that ignores the files of the stand-ins."""
        self.git("init", "-q", "-b", "main")
        hidden = ".stand-ins .calls .output .summary .gitconfig .seed .image .local .config"
        (self.root / ".git" / "info" / "exclude").write_text("\n".join(hidden.split()))
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "all")

    def _read(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""

    @property
    def calls(self) -> list[str]:
        return self._read(".calls").splitlines()

    @property
    def summary(self) -> str:
        return self._read(".summary")

    @property
    def output(self) -> dict[str, str]:
        """The outputs of the step."""
        return dict(line.split("=", 1) for line in self._read(".output").splitlines())
