"""House rules that a tool outside the project does not check."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = {path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".yaml"}
SCRIPTS = [*sorted(PROGRAMS), ROOT / ".ci" / "run"]
LINES = 400
"""A longer module is to be divided."""

FOREIGN = re.compile(
    "|".join(
        (  # in two pieces, so that this file does not find itself
            r"pypi\." + r"org",
            r"files\.python" + r"hosted",
            r"download\.py" + r"torch",
            r"registry\.npm" + r"js",
            r"deb\.de" + r"bian",
            r"--(extra-)?index" + r"-url",
            r"/opt/" + r"(pypi|wheels)",
            r"/wo" + r"rk/(main|shared)",
            r"/ho" + r"me/[a-z]+/",
            r"\.lib" + r"rary/",
        )
    )
)


def tracked() -> list[Path]:
    """The files that are, or are about to be, in version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in tracked():
        raw = path.read_bytes()
        if b"\0" in raw[:4096]:
            continue  # a picture
        for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
            if FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_every_package_says_what_it_is() -> None:
    silent = []
    for folder in {path.parent for path in (ROOT / "bafogpt").rglob("*.py")}:
        init = folder / "__init__.py"
        if not init.exists() or not ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))):
            silent.append(str(folder.relative_to(ROOT)))
    assert silent == []


def test_no_module_is_longer_than_the_limit() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for part in ("bafogpt", "tests")
        for path in (ROOT / part).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert long == {}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines if not line.startswith("#")]
    assert all(matches), "every line is name==version, with no local version"
    return {match[1]: match[2] for match in matches if match}


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set()
    for requirement in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name
        wanted.add(re.sub(r"[-_.]+", "-", name[0]).lower())

    assert wanted - set(pins()) == {"bafogpt"}


def test_pins_are_sorted_and_given_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

    assert lines == sorted(set(lines), key=lambda line: line.split("==")[0])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_strict_executable_and_parses(script: Path) -> None:
    text = script.read_text()

    assert os.access(script, os.X_OK)
    if text.startswith("#!/usr/bin/env bash"):
        assert "set -euo pipefail" in text
        assert subprocess.run(["bash", "-n", script]).returncode == 0
