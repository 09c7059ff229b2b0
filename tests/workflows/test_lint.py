"""One mistake for each tool that ``./scripts/lint`` calls, planted in a copy of the project: each has to be found.

What can be is planted together, in one copy for each part: lint tells all that is wrong at once.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflows.tree import ROOT, copy_project

PLACE = "scripts/ci/all-succeeded"
WORKFLOW = ".github/workflows/ci.yml"


@dataclass(frozen=True)
class Mistake:
    part: str
    file: str
    old: str
    new: str
    found: str
    """What the tool says about it."""
    alone: bool = False
    """It keeps other tools from reading what they are to find something in."""


MISTAKES = {
    "check-jsonschema, a workflow": Mistake(
        "workflows", WORKFLOW, "runs-on: ubuntu-24.04", "runs_on: ubuntu-24.04", "runs_on", alone=True
    ),
    "check-jsonschema, dependabot": Mistake(
        "workflows", ".github/dependabot.yml", "interval: weekly", "interval: sometimes", "'sometimes'", alone=True
    ),
    "check-jsonschema, a form": Mistake(
        "workflows", ".github/ISSUE_TEMPLATE/bug.yml", "type: textarea", "type: textbox", "textbox"
    ),
    "actionlint": Mistake("workflows", WORKFLOW, "toJSON(needs)", "toJSON(needs.nobody)", '"nobody" is not defined'),
    "actionlint, an input of a pinned action": Mistake(
        "workflows", WORKFLOW, "python-version:", "pythonversion:", 'input "pythonversion" is not defined'
    ),
    "shellcheck, in a workflow": Mistake("workflows", WORKFLOW, PLACE, f"{PLACE} $NEEDS", "SC2086"),
    "zizmor, injection": Mistake(
        "workflows",
        ".github/workflows/release.yml",
        '"$GITHUB_REF_NAME"',
        '"${{ github.ref_name }}"',
        "template-injection",
    ),
    "zizmor, a tag in place of a commit": Mistake(
        "workflows",
        WORKFLOW,
        "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2",
        "actions/checkout@v6",
        "unpinned-uses",
    ),
    "zizmor, kept credentials": Mistake(
        "workflows", ".github/workflows/images.yml", "persist-credentials: false", "fetch-depth: 1", "artipacked"
    ),
    "zizmor, permissions": Mistake(
        "workflows",
        ".github/workflows/nightly.yml",
        "permissions: {}",
        "permissions: write-all",
        "excessive-permissions",
    ),
    "shellcheck": Mistake("shell", "scripts/test", "exec .venv", "cd $1; exec .venv", "SC2086"),
    "shellcheck, a script of CI": Mistake("shell", "scripts/ci/as-root", 'exec "$@"', "exec $@", "SC2068"),
    "shellcheck, .ci/run": Mistake("shell", ".ci/run", "export CI=true", "CI=true", "SC2034"),
    "hadolint": Mistake("images", "docker/train.Dockerfile", "COPY . /source", "ADD . /source", "DL3020"),
    "yamllint": Mistake("yaml", "jobs/demo.yaml", "extends: pretrain.yaml", "extends: a\nextends: b", "key-duplicates"),
    "links, a file": Mistake("docs", "README.md", "(LICENSE)", "(LICENCE)", "(LICENCE) leads nowhere"),
    "links, a heading": Mistake(
        "docs", "README.md", "(CONTRIBUTING.md)", "(CONTRIBUTING.md#nothing)", "names a heading"
    ),
    "ruff format": Mistake(
        "python", "bafogpt/core/files.py", "import annotations\n", "import  annotations\n", "core/files.py"
    ),
    "ruff check": Mistake(
        "python",
        "bafogpt/core/errors.py",
        "import annotations\n",
        "import annotations\n\nimport antigravity\n",
        "`antigravity` imported but unused",
    ),
    "ruff check, a script": Mistake(
        "python", "scripts/ci/links", "import sys\n", "import sys\nimport this\n", "`this` imported but unused"
    ),
}


def a_copy(folder: Path) -> Path:
    project = copy_project(folder / "project")
    (project / ".venv").symlink_to(ROOT / ".venv")
    return project


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return a_copy(tmp_path)


def lint(project: Path, *parts: str) -> tuple[int, str]:
    done = subprocess.run(
        ["./scripts/lint", *parts],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def plant(project: Path, mistake: Mistake) -> None:
    file = project / mistake.file
    text = file.read_text(encoding="utf-8")
    assert mistake.old in text, f"{mistake} cannot be planted: the test is to be mended"
    file.write_text(text.replace(mistake.old, mistake.new, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[int, str]]:
    """What lint says about a part with all of its mistakes in it, asked once."""

    @functools.cache
    def of(part: str) -> tuple[int, str]:
        project = a_copy(tmp_path_factory.mktemp(part))
        for mistake in MISTAKES.values():
            if mistake.part == part and not mistake.alone:
                plant(project, mistake)
        return lint(project, part)

    return of


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_found(mistake: Mistake, told: Callable[[str], tuple[int, str]], tmp_path: Path) -> None:
    if mistake.alone:
        project = a_copy(tmp_path)
        plant(project, mistake)
        code, said = lint(project, mistake.part)
    else:
        code, said = told(mistake.part)

    assert code != 0
    assert mistake.found in said


def test_without_a_mistake_nothing_is_found(copy: Path) -> None:
    """Else a tool might find what was planted in whatever it is given."""
    code, said = lint(copy, "workflows", "shell", "images", "yaml", "docs")

    assert (code, said) == (0, "")


@pytest.mark.slow
def test_a_wrong_type_is_found(copy: Path) -> None:
    file = copy / "bafogpt" / "core" / "errors.py"
    file.write_text(file.read_text(encoding="utf-8") + '\nWRONG: int = "word"\n', encoding="utf-8")

    code, said = lint(copy, "types")

    assert code != 0
    assert "Incompatible types in assignment" in said


def test_an_unknown_part_is_refused(copy: Path) -> None:
    code, said = lint(copy, "everything")

    assert code == 2
    assert "there is no part 'everything'" in said


def test_every_tool_is_the_pinned_one() -> None:
    for tool in ("actionlint", "check-jsonschema", "hadolint", "shellcheck", "yamllint", "zizmor", "ruff", "mypy"):
        assert shutil.which(tool, path=str(ROOT / ".venv" / "bin")), f"{tool} is not in .venv"
