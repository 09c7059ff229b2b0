"""Rules for every workflow that actionlint and zizmor do not check."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflows.tree import ROOT

FOLDER = ROOT / ".github" / "workflows"
PATHS = sorted(FOLDER.glob("*.yml"))
OUTSIDE = ("cosign sign ", "gh workflow run images.yml ")
"""The commands of a step that are no script of the project."""
BUILT = ".venv/bin/bafogpt"
"""Called by a step, and made by ./scripts/setup."""


def load(path: Path) -> dict[str, Any]:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads "on" as a boolean
    return dict(workflow)


WORKFLOWS = {path.stem: load(path) for path in PATHS}
JOBS: dict[str, dict[str, Any]] = {
    f"{workflow}/{name}": job for workflow, content in WORKFLOWS.items() for name, job in content["jobs"].items()
}
STEPS: dict[str, dict[str, Any]] = {
    f"{name}/{number}": step for name, job in JOBS.items() for number, step in enumerate(job.get("steps", []), 1)
}
COMMANDS = {name: step["run"] for name, step in STEPS.items() if "run" in step}


def test_the_project_has_these_workflows() -> None:
    assert list(WORKFLOWS) == ["ci", "images", "launch", "nightly", "release"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_step_is_one_command_that_exists(name: str) -> None:
    command = COMMANDS[name]
    assert not re.search(r"\n|&&|\|\||;|\|", command.strip()), "more than one command: make it a script"
    if not command.startswith(OUTSIDE):
        assert command.startswith(("./scripts/", BUILT))
        for word in command.split():
            assert not word.startswith("./") or os.access(ROOT / word, os.X_OK), f"no script {word}"


def test_every_action_is_pinned_to_one_commit_with_its_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in PATHS:
        for used in re.findall(r"uses: (?!\./)(.+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), f"{path.name}: {used}"
            action, pin = used.split("@")
            pins.setdefault(action, set()).add(pin)

    assert len(pins) >= 10
    assert {action: many for action, many in pins.items() if len(many) > 1} == {}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_and_time_are_given_job_by_job(name: str) -> None:
    workflow = WORKFLOWS[name]

    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job.get("permissions"), "a job without permissions"
        assert "uses" in job or "timeout-minutes" in job, "a job that may run for six hours"


def test_only_these_jobs_may_write_or_sign() -> None:
    """A new right is a change of this list, which a reviewer sees."""
    rights = {
        name: sorted(right for right, level in job["permissions"].items() if level == "write")
        for name, job in JOBS.items()
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
    assert not any("pull_request_target" in workflow["on"] for workflow in WORKFLOWS.values())
    for name, job in JOBS.items():
        if "secrets." in str(job):
            assert job.get("environment"), f"{name} uses a secret that no environment guards"
            if "pull_request" in WORKFLOWS[name.split("/")[0]]["on"]:
                assert "needs" in job or "pull_request'" in job.get("if", ""), name


def test_ci_runs_the_same_scripts_as_the_local_check() -> None:
    here = set(re.findall(r"\./scripts/\S+", (ROOT / ".ci" / "run").read_text(encoding="utf-8")))
    there = " ".join(
        command.replace("./scripts/ci/as-root ", "")
        for name, command in COMMANDS.items()
        if name.startswith(("ci/lint/", "ci/test/"))
    )

    assert here == {"./scripts/lint", "./scripts/test"}
    assert set(re.findall(r"\./scripts/\S+", there)) - {"./scripts/ci/free-disk", "./scripts/setup"} == here


def test_ci_waits_for_all_of_its_jobs_and_every_python() -> None:
    jobs = WORKFLOWS["ci"]["jobs"]

    assert set(jobs["passed"]["needs"]) == set(jobs) - {"passed"}
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert jobs["test"]["strategy"]["matrix"]["python"] == classifiers


def test_an_image_is_tested_before_it_is_scanned_pushed_and_signed() -> None:
    steps = [step.get("run", step.get("uses", "")) for step in JOBS["images/publish"]["steps"]]
    order = ["image build", "image test", "ci/sbom", "scan-action", "publish-image", "actions/attest", "cosign sign"]
    places = [next(place for place, each in enumerate(steps) if word in each) for word in order]

    assert places == sorted(places)
    assert sum("actions/attest@" in each for each in steps) == 2, "provenance and contents"
    assert not any("push" in str(step) for step in JOBS["images/build"]["steps"])


def test_an_image_is_built_for_the_same_changes_before_and_after_they_land() -> None:
    on = WORKFLOWS["images"]["on"]
    paths = on["push"]["paths"]

    assert paths == on["pull_request"]["paths"]
    assert "!docker/image.yaml" in paths, "a new pin would build a new image, which asks for a new pin"
    assert [path for path in paths if path[0] != "!" and not (ROOT / path.removesuffix("/**")).exists()] == []


def test_the_nightly_build_passes_the_inputs_of_the_workflow_that_it_starts() -> None:
    inputs = WORKFLOWS["images"]["on"]["workflow_dispatch"]["inputs"]

    assert re.findall(r"--field ([\w-]+)=true", COMMANDS["nightly/images/1"]) == list(inputs)


def test_a_launch_is_planned_then_approved_and_its_teardown_is_always_checked() -> None:
    launch = JOBS["launch/launch"]
    last = launch["steps"][-1]

    assert launch["needs"] == "plan" and launch["environment"] == "launch"
    assert "secrets." not in str(JOBS["launch/plan"])
    assert last["run"] == './scripts/ci/check-teardown "$RUN"'
    assert last["if"] == "${{ always() }}"
    spent = sum(step.get("timeout-minutes", 0) for step in launch["steps"])
    assert spent < launch["timeout-minutes"] < 360, "GitHub would end the job before the teardown is checked"
