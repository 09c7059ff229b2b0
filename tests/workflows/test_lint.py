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

# tool | part ("!": a copy of its own, because it keeps other tools from reading the file) | file | old | new | reported
TABLE = r"""
schema, workflow | !workflows | WF/ci.yml | runs-on: ubuntu | runs_on: ubuntu | runs_on
schema, dependabot | !workflows | .github/dependabot.yml | interval: weekly | interval: sometimes | 'sometimes'
schema, form | workflows | .github/ISSUE_TEMPLATE/bug.yml | type: textarea | type: textbox | textbox
actionlint | workflows | WF/ci.yml | toJSON(needs) | toJSON(needs.no) | "no" is not defined
actionlint, input | workflows | WF/ci.yml | python-version: | pythonversion: | input "pythonversion" is not
shellcheck, workflow | workflows | WF/ci.yml | ci/all-succeeded | ci/all-succeeded $NEEDS | SC2086
zizmor, injection | workflows | WF/release.yml | "$GITHUB_REF_NAME" | "${{ github.ref_name }}" | template-inj
zizmor, tag | workflows | WF/ci.yml | @de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2 | @v6 | unpinned-uses
zizmor, credentials | workflows | WF/images.yml | persist-credentials: false | fetch-depth: 1 | artipacked
zizmor, rights | workflows | WF/nightly.yml | permissions: {} | permissions: write-all | excessive-permissions
shellcheck | shell | scripts/test | exec .venv | cd $1; exec .venv | SC2086
shellcheck, scripts/ci | shell | scripts/ci/as-root | exec "$@" | exec $@ | SC2068
shellcheck, .ci/run | shell | .ci/run | export CI=true | CI=true | SC2034
hadolint | images | docker/train.Dockerfile | COPY . /source | ADD . /source | DL3020
yamllint | yaml | jobs/demo.yaml | extends: pretrain.yaml | extends: a\nextends: b | key-duplicates
links, file | docs | README.md | (LICENSE) | (LICENCE) | (LICENCE) leads nowhere
links, heading | docs | README.md | (CONTRIBUTING.md) | (CONTRIBUTING.md#nothing) | names a heading
codespell | prose | README.md | [Apache-2.0] | Teh [Apache-2.0] | Teh ==> The
prose, phrase | prose | README.md | [Apache-2.0] | Likelier: [Apache-2.0] | 'Likelier': write more probable
prose, two lines | prose | jobs/demo.yaml | extends: | # lost for\n# ever\nextends: | 'for ever': write forever
prose, module | prose | bafogpt/core/errors.py | annotations\n | annotations  # bafogpt/cloud\n | 'bafogpt/cloud'
prose, class | prose | bafogpt/core/files.py | annotations\n | annotations  # Patient\n | 'Patient': write Check
prose, key | prose | jobs/pretrain.yaml | supervisor: | # hang_s: 5\nsupervisor: | 'hang_s': write hang_timeout_s
ruff format | python | bafogpt/core/files.py | import annotations\n | import  annotations\n | core/files.py
ruff check | python | bafogpt/core/errors.py | annotations\n | annotations\nimport antigravity\n | `antigravity`
ruff check, script | python | scripts/ci/links | import sys\n | import sys\nimport this\n | `this` imported but unused
"""


class Mistake(NamedTuple):
    part: str
    file: str
    old: str
    new: str
    reported: str


LINES = TABLE.strip().replace("WF/", ".github/workflows/").splitlines()
ROWS = [line.replace(r"\n", "\n").split(" | ") for line in LINES]
MISTAKES = {tool: Mistake(*fields) for tool, *fields in ROWS}


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
        part = mistakes[0].part.strip("!")
        project = a_copy(tmp_path_factory.mktemp(part))
        for mistake in mistakes:
            plant(project, mistake)
        return lint(project, part)

    return of


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_reported(
    mistake: Mistake, report_of: Callable[[tuple[Mistake, ...]], tuple[int, str]]
) -> None:
    together = tuple(each for each in MISTAKES.values() if each.part == mistake.part)

    code, report = report_of((mistake,) if mistake.part[0] == "!" else together)

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
