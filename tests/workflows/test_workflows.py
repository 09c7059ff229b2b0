"""What holds for every workflow, beyond what actionlint and zizmor know."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflows.tree import ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
PIN = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
OUTSIDE = ("cosign sign ", "gh workflow run images.yml ")
"""The commands of a step that are no script of ours."""
BUILT = {".venv/bin/bafogpt"}
"""Called by a step, and made by ./scripts/setup."""


def load(path: Path) -> dict[str, Any]:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    workflow["on"] = workflow.pop(True)  # YAML 1.1 takes "on" for a boolean
    return dict(workflow)


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            yield f"{path.stem}/{name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for number, step in enumerate(job.get("steps", []), start=1):
            yield f"{name}/{number}", step


def commands(text: str) -> list[str]:
    """The scripts that are called in ``text``, without what only changes who calls them."""
    return re.findall(r"\./scripts/\S+", text.replace("./scripts/ci/as-root ", ""))


def test_the_workflows_that_the_project_needs_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "images", "launch", "nightly", "release"]


def test_a_step_is_one_line_and_calls_a_script_that_is_there() -> None:
    called = 0
    for name, step in steps():
        if command := step.get("run"):
            assert "\n" not in command.strip(), f"{name} is more than a line: make it a script"
            assert not re.search(r"&&|\|\||;|\|", command), f"{name} is more than one command"
            if command.startswith(OUTSIDE):
                continue
            for word in command.split():
                if word in BUILT:
                    called += 1
                elif word.startswith("./"):
                    called += 1
                    assert os.access(ROOT / word, os.X_OK), f"{name} calls {word}, which is no script"
            assert command.split()[0] in BUILT or command.startswith("./scripts/"), f"{name}: {command}"
    assert called >= 20


def test_every_action_is_named_by_a_commit_and_its_version() -> None:
    for path in WORKFLOWS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line and "uses: ./" not in line:
                assert PIN.search(line), f"{path.name}: {line.strip()}"


def test_an_action_has_one_commit_and_a_commit_one_version() -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for path in WORKFLOWS:
        for action, commit, version in re.findall(r"uses: (\S+)@(\S+) # (\S+)", path.read_text(encoding="utf-8")):
            found.setdefault(action, set()).add((commit, version))

    assert len(found) >= 10
    assert {action: pins for action, pins in found.items() if len(pins) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_nothing_until_a_job_says_what(path: Path) -> None:
    workflow = load(path)

    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for name, job in workflow["jobs"].items():
        assert job.get("permissions"), f"{name} does not say what it may do"
        assert "uses" in job or "timeout-minutes" in job, f"{name} may run for six hours"


def test_who_may_write_or_sign_is_known() -> None:
    """A new right is a change of this list, which a reviewer sees."""
    rights = {
        name: sorted(right for right, level in job["permissions"].items() if level == "write") for name, job in jobs()
    }

    assert {name: some for name, some in rights.items() if some} == {
        "images/publish": ["attestations", "id-token", "packages"],
        "images/pin": ["contents", "pull-requests"],
        "launch/launch": ["id-token"],
        "nightly/images": ["actions"],
        "release/wheel": ["attestations", "id-token"],
        "release/publish": ["id-token"],
        "release/announce": ["contents"],
    }


def test_no_pull_request_reaches_a_secret() -> None:
    for path in WORKFLOWS:
        workflow = load(path)
        assert "pull_request_target" not in workflow["on"]
        for name, job in workflow["jobs"].items():
            if "secrets." in str(job):
                assert job.get("environment"), f"{path.stem}/{name} uses a secret that no environment guards"
                if "pull_request" in workflow["on"]:
                    assert "needs" in job or "pull_request'" in job.get("if", ""), f"{path.stem}/{name}"


def test_ci_runs_the_scripts_that_decide_here() -> None:
    here = set(commands((ROOT / ".ci" / "run").read_text(encoding="utf-8")))
    there = set()
    for job in ("lint", "test"):
        for step in load(FOLDER / "ci.yml")["jobs"][job]["steps"]:
            there |= set(commands(step.get("run", "")))
    makes_room = {"./scripts/ci/free-disk", "./scripts/setup"}  # what both of those call first, or a machine needs

    assert here == {"./scripts/lint", "./scripts/test"}
    assert there - makes_room == here


def test_ci_waits_for_all_of_its_jobs_and_every_python() -> None:
    all_jobs = load(FOLDER / "ci.yml")["jobs"]

    assert set(all_jobs["passed"]["needs"]) == set(all_jobs) - {"passed"}
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert all_jobs["test"]["strategy"]["matrix"]["python"] == classifiers


def test_an_image_is_tested_before_it_is_scanned_pushed_and_signed() -> None:
    publish = load(FOLDER / "images.yml")["jobs"]["publish"]
    told = [step.get("run", step.get("uses", "")) for step in publish["steps"]]
    order = ["image build", "image test", "ci/sbom", "scan-action", "publish-image", "actions/attest", "cosign sign"]
    places = [next(place for place, each in enumerate(told) if word in each) for word in order]

    assert places == sorted(places)
    assert sum("actions/attest@" in each for each in told) == 2, "provenance, and what is in it"
    assert not any("push" in str(step) for step in load(FOLDER / "images.yml")["jobs"]["build"]["steps"])


def test_an_image_is_built_for_the_same_changes_before_and_after_they_land() -> None:
    on = load(FOLDER / "images.yml")["on"]

    assert on["push"]["paths"] == on["pull_request"]["paths"]
    assert "!docker/image.yaml" in on["push"]["paths"], "a new pin would build a new image, which asks for a new pin"
    for path in on["push"]["paths"]:
        if not path.startswith("!"):
            assert (ROOT / path.removesuffix("/**")).exists(), f"there is no {path}"


def test_the_night_starts_a_workflow_with_an_input_that_it_has() -> None:
    started = load(FOLDER / "nightly.yml")["jobs"]["images"]["steps"][0]["run"]
    inputs = load(FOLDER / "images.yml")["on"]["workflow_dispatch"]["inputs"]

    assert re.findall(r"--field ([\w-]+)=true", started) == list(inputs)


def test_a_launch_is_planned_then_approved_and_its_teardown_is_always_checked() -> None:
    launch = load(FOLDER / "launch.yml")["jobs"]["launch"]
    last = launch["steps"][-1]

    assert launch["needs"] == "plan" and launch["environment"] == "launch"
    assert "secrets." not in str(load(FOLDER / "launch.yml")["jobs"]["plan"])
    assert last["run"] == './scripts/ci/check-teardown "$RUN"'
    assert last["if"] == "${{ always() }}"
    spent = sum(step.get("timeout-minutes", 0) for step in launch["steps"])
    assert spent < launch["timeout-minutes"] < 360, "GitHub would end the job before its teardown is checked"
