"""One mistake for each tool that ``./scripts/lint`` calls, planted in a copy of the project: lint must report each.

Mistakes of one part share a copy, because lint goes on after a failure.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.workflows.tree import ROOT, copy_project

SCRIPT = "scripts/ci/all-succeeded"
WORKFLOW = ".github/workflows/ci.yml"
CHECKOUT = "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"
IMPORTS = "import annotations\n"


class Mistake(NamedTuple):
    part: str
    file: str
    old: str
    new: str
    reported: str
    alone: bool = False
    """It keeps other tools from reading the file, so it gets a copy of its own."""


MISTAKES = {
    "check-jsonschema, a workflow": Mistake(
        "workflows", WORKFLOW, "runs-on: ubuntu", "runs_on: ubuntu", "runs_on", True
    ),
    "check-jsonschema, dependabot": Mistake(
        "workflows", ".github/dependabot.yml", "interval: weekly", "interval: sometimes", "'sometimes'", True
    ),
    "check-jsonschema, a form": Mistake(
        "workflows", ".github/ISSUE_TEMPLATE/bug.yml", "type: textarea", "type: textbox", "textbox"
    ),
    "actionlint": Mistake("workflows", WORKFLOW, "toJSON(needs)", "toJSON(needs.no)", '"no" is not defined'),
    "actionlint, an input of a pinned action": Mistake(
        "workflows", WORKFLOW, "python-version:", "pythonversion:", 'input "pythonversion" is not defined'
    ),
    "shellcheck, in a workflow": Mistake("workflows", WORKFLOW, SCRIPT, f"{SCRIPT} $NEEDS", "SC2086"),
    "zizmor, injection": Mistake(
        "workflows",
        ".github/workflows/release.yml",
        '"$GITHUB_REF_NAME"',
        '"${{ github.ref_name }}"',
        "template-injection",
    ),
    "zizmor, a tag in place of a commit": Mistake(
        "workflows", WORKFLOW, CHECKOUT, "actions/checkout@v6", "unpinned-uses"
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
    "codespell": Mistake("prose", "README.md", "[Apache-2.0]", "Teh [Apache-2.0]", "Teh ==> The"),
    "prose, a phrase": Mistake(
        "prose", "README.md", "[Apache-2.0]", "Likelier: [Apache-2.0]", "'Likelier': write more probable"
    ),
    "prose, a phrase in two lines of a comment": Mistake(
        "prose", "jobs/demo.yaml", "extends:", "# a kill, so\n# to say\nextends:", "'so to say': write"
    ),
    "prose, a module": Mistake(
        "prose", "bafogpt/core/errors.py", IMPORTS, IMPORTS + "# see bafogpt/cloud/plan.py\n", "'bafogpt/cloud': write"
    ),
    "prose, a class": Mistake(
        "prose", "bafogpt/core/files.py", IMPORTS, IMPORTS + "# :class:`Patient`\n", "'Patient': write CheckContext"
    ),
    "prose, a key": Mistake(
        "prose", "jobs/pretrain.yaml", "train:", "# hang_s: 5\ntrain:", "'hang_s': write hang_timeout_s"
    ),
    "ruff format": Mistake("python", "bafogpt/core/files.py", IMPORTS, f" {IMPORTS}", "core/files.py"),
    "ruff check": Mistake(
        "python",
        "bafogpt/core/errors.py",
        IMPORTS,
        f"{IMPORTS}\nimport antigravity\n",
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


def lint(project: Path, *parts: str) -> tuple[int, str]:
    words = ["./scripts/lint", *parts]
    out = subprocess.PIPE
    done = subprocess.run(words, cwd=project, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=300)
    return done.returncode, done.stdout


def plant(project: Path, mistake: Mistake) -> None:
    file = project / mistake.file
    text = file.read_text(encoding="utf-8")
    assert mistake.old in text, f"{mistake} cannot be planted: change this test"
    file.write_text(text.replace(mistake.old, mistake.new, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[Mistake, ...]], tuple[int, str]]:
    """Lint's exit code and output for a copy with these mistakes of one part; each copy is linted once."""

    @functools.cache
    def of(mistakes: tuple[Mistake, ...]) -> tuple[int, str]:
        project = a_copy(tmp_path_factory.mktemp(mistakes[0].part))
        for mistake in mistakes:
            plant(project, mistake)
        return lint(project, mistakes[0].part)

    return of


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_reported(
    mistake: Mistake, report_of: Callable[[tuple[Mistake, ...]], tuple[int, str]]
) -> None:
    together = tuple(each for each in MISTAKES.values() if each.part == mistake.part and not each.alone)

    code, report = report_of((mistake,) if mistake.alone else together)

    assert code != 0
    assert mistake.reported in report


def test_a_copy_without_mistakes_passes(tmp_path: Path) -> None:
    assert lint(a_copy(tmp_path), "workflows", "shell", "images", "yaml", "docs", "prose") == (0, "")


@pytest.mark.slow
def test_a_wrong_type_is_reported(tmp_path: Path) -> None:
    project = a_copy(tmp_path)
    with (project / "bafogpt" / "core" / "errors.py").open("a") as file:
        file.write('\nWRONG: int = "word"\n')

    code, report = lint(project, "types")

    assert code != 0
    assert "Incompatible types in assignment" in report


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    code, report = lint(a_copy(tmp_path), "everything")

    assert code == 2
    assert "there is no part 'everything'" in report


@pytest.mark.parametrize(
    "tool",
    ["actionlint", "check-jsonschema", "codespell", "hadolint", "mypy", "ruff", "shellcheck", "yamllint", "zizmor"],
)
def test_every_tool_is_the_pinned_one(tool: str) -> None:
    assert (ROOT / ".venv" / "bin" / tool).exists()
