"""The scripts that workflows call, beside those that publish: each with the commands around it stood in for."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.tree import ROOT, Tree

FORM = {"JOB": "pretrain", "GPUS": "L40:4", "INFRA": "runpod", "MAX_COST": "20", "MAX_HOURS": "5"}
RUN = {"RUN": "gh-12-1", "WATCH": "true"}


@pytest.mark.parametrize(
    ("results", "passes"),
    [
        ({"lint": "success", "test": "success"}, True),
        ({"lint": "success", "test": "failure"}, False),
        ({"lint": "success", "test": "skipped"}, False),
        ({"lint": "cancelled"}, False),
        ({}, False),
    ],
)
def test_only_success_of_all_jobs_is_success(tree: Tree, results: dict[str, str], passes: bool) -> None:
    needs = json.dumps({name: {"result": result, "outputs": {}} for name, result in results.items()})

    assert (tree.run("scripts/ci/all-succeeded", NEEDS=needs).returncode == 0) is passes


def test_as_root_keeps_path_home_and_environment_and_asks_sudo_only_where_needed(tree: Tree) -> None:
    tree.stand_in("id", "echo 1000")
    tree.stand_in("sudo", 'while [[ $1 != -- ]]; do shift; done; shift; exec /usr/bin/env -u PATH -u HOME "$@"')

    done = tree.run("scripts/ci/as-root", "/bin/bash", "-c", "echo $PATH $HOME $CI; exit 3", CI="true")

    assert done.returncode == 3
    assert done.stdout.strip() == f"{tree.environment['PATH']} {tree.environment['HOME']} true"
    tree.stand_in("id", "echo 0")
    assert tree.run("scripts/ci/as-root", "echo", "root already").stdout.strip() == "root already"
    assert [call.split()[0] for call in tree.calls].count("sudo") == 1


def test_free_disk_deletes_no_more_than_is_needed_and_only_on_githubs_machines(tree: Tree, tmp_path: Path) -> None:
    runner = tmp_path / "runner"
    for name in ("usr/share/dotnet", "usr/local/lib/android", "opt/ghc", "usr/bin"):
        (runner / name).mkdir(parents=True)
    # what is free grows by 10 GB with everything that goes
    count = f"for each in usr/share/dotnet usr/local/lib/android opt/ghc; do [[ -e {runner}/$each ]] || free+=+10; done"
    tree.stand_in("df", "free=20; " + count + '; printf "Avail\\n%sG\\n" $((free))')
    tree.stand_in("id", "echo 0")
    there = {"BAFOGPT_RUNNER_ROOT": str(runner)}

    assert tree.run("scripts/ci/free-disk", "40", **there).returncode == 2
    assert (runner / "usr/share/dotnet").exists()

    done = tree.run("scripts/ci/free-disk", "40", GITHUB_ACTIONS="true", **there)
    assert done.returncode == 0, done.stdout
    assert not (runner / "usr/share/dotnet").exists() and not (runner / "usr/local/lib/android").exists()
    assert (runner / "opt/ghc").exists() and (runner / "usr/bin").exists()

    done = tree.run("scripts/ci/free-disk", "90", GITHUB_ACTIONS="true", **there)
    assert done.returncode == 1
    assert "50 GB are free, 90 are needed" in done.stdout
    assert (runner / "usr/bin").exists()


def test_a_tag_is_the_packages_version_and_has_its_part_of_the_changelog(tree: Tree) -> None:
    (tree.root / "bafogpt" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    changelog = tree.root / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## 1.2.0 (unreleased)\n\n- new\n\n## 1.1.0 (2026-01-02)\n\n- old\n")

    assert "the package says 1.2.0" in tree.run("scripts/ci/check-version", "v1.3.0").stdout
    assert "no dated part for 1.2.0" in tree.run("scripts/ci/check-version", "v1.2.0").stdout

    changelog.write_text(changelog.read_text().replace("unreleased", "2026-02-03"))
    done = tree.run("scripts/ci/check-version", "v1.2.0")
    assert (done.returncode, done.stdout) == (0, "1.2.0\n")
    assert tree.run("scripts/ci/release-notes", "1.2.0").stdout == "- new\n"
    assert tree.run("scripts/ci/release-notes", "1.1.0").stdout == "- old\n"
    assert "says nothing about 9.9.9" in tree.run("scripts/ci/release-notes", "9.9.9").stdout

    tree.stand_in("gh", "cat >.notes")
    (tree.root / "dist").mkdir()
    (tree.root / "dist" / "bafogpt-1.2.0-py3-none-any.whl").touch()
    assert tree.run("scripts/ci/announce", "v1.2.0", "dist").returncode == 0
    assert tree.calls[-1].startswith("gh release create v1.2.0 --verify-tag")
    assert tree.calls[-1].endswith("bafogpt-1.2.0-py3-none-any.whl")
    assert (tree.root / ".notes").read_text() == "- new\n"


def test_the_wheel_is_built_twice_alike_and_works_alone(tree: Tree) -> None:
    os.rmdir(tree.root / ".venv" / "bin")
    os.rmdir(tree.root / ".venv")
    (tree.root / ".venv").symlink_to(ROOT / ".venv")
    (tree.root / ".gitignore").write_text(".venv\ndist\n")
    tree.commit()

    done = tree.run("scripts/ci/build-wheel", "dist")

    assert done.returncode == 0, done.stdout
    (wheel,) = (tree.root / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "bafogpt/cli/main.py" in names and "bafogpt/_project/jobs/pretrain.yaml" in names
    assert not any(name.startswith(("tests/", ".venv")) for name in names)


def test_a_plan_is_priced_into_the_summary_and_starts_nothing(tree: Tree) -> None:
    tree.bafogpt("echo 'L40:4  4.56 $/h'")

    done = tree.run("scripts/ci/launch", "plan", **FORM)

    assert done.returncode == 0, done.stdout
    assert tree.calls == ["bafogpt cloud plan pretrain --gpus L40:4 --infra runpod"]
    assert "4.56 $/h" in tree.summary and "pretrain on L40:4, at most 20 dollars" in tree.summary


def test_a_plan_that_fails_ends_the_workflow(tree: Tree) -> None:
    tree.bafogpt("echo 'bafogpt: nobody offers L41' >&2; exit 7")

    done = tree.run("scripts/ci/launch", "plan", **FORM)

    assert done.returncode == 7
    assert "nobody offers L41" in tree.summary


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOB", "--help"),
        ("JOB", "../../etc/passwd"),
        ("GPUS", "L40:4 --yes"),
        ("GPUS", "$(id)"),
        ("INFRA", "-x"),
        ("MAX_COST", "lots"),
        ("MAX_HOURS", ""),
        ("RUN", "a\nb"),
        ("WATCH", "perhaps"),
    ],
)
def test_what_was_typed_into_the_form_cannot_be_anything_else(tree: Tree, name: str, value: str) -> None:
    tree.bafogpt()

    done = tree.run("scripts/ci/launch", "launch", **(FORM | RUN | {name: value}))

    assert done.returncode == 2
    assert name in done.stdout and "hint:" in done.stdout
    assert tree.calls == []


def test_a_launch_hands_on_the_limits_the_session_and_the_exit_code(tree: Tree) -> None:
    tree.bafogpt("exit 5")

    done = tree.run("scripts/ci/launch", "launch", **FORM, **RUN, AWS_SESSION_TOKEN="planted-secret")

    limits = "--max-cost 20 --max-hours 5"
    assert done.returncode == 5
    assert tree.calls == [
        f"bafogpt cloud launch pretrain --gpus L40:4 --infra runpod {limits} --name gh-12-1 --yes"
        " --env AWS_SESSION_TOKEN"
    ]
    assert "planted-secret" not in done.stdout + tree.summary


def test_a_launch_that_nobody_watches_returns_at_once(tree: Tree) -> None:
    tree.bafogpt()

    tree.run("scripts/ci/launch", "launch", **FORM, **(RUN | {"WATCH": "false"}))

    assert tree.calls[0].endswith("--yes --detach")


def test_the_summary_tells_what_can_be_told(tree: Tree) -> None:
    tree.bafogpt(
        "case $2 in status) echo running;; cost) echo 'no price known' >&2; exit 4;; show) echo page >\"$5\";; esac"
    )
    github = {"GITHUB_RUN_ID": "12", "GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "a/b"}

    done = tree.run("scripts/ci/run-summary", "gh-12-1", "dist", BAFOGPT_BUCKET="s3://mine", **github)

    assert done.returncode == 0, done.stdout
    for told in ("running", "no price known", "s3://mine/runs/gh-12-1", "https://example.org/a/b/actions/runs/12"):
        assert told in tree.summary
    assert (tree.root / "dist" / "gh-12-1.html").read_text() == "page\n"


LEFT = """case $2 in
down) exit {down};;
reap) echo x >>.asked; if [[ $(wc -l <.asked) -le {times} ]]; then echo '[{{"name": "gh-12-1"}}]'; else echo '[]'; fi;;
esac"""


@pytest.mark.parametrize(
    ("watch", "launched", "ended"),
    [("true", "success", True), ("true", "failure", True), ("false", "cancelled", True), ("false", "success", False)],
)
def test_every_run_is_ended_but_one_that_is_to_go_on(tree: Tree, watch: str, launched: str, ended: bool) -> None:
    tree.bafogpt(LEFT.format(down=0, times=0))

    done = tree.run("scripts/ci/check-teardown", "gh-12-1", WATCH=watch, LAUNCHED=launched)

    assert done.returncode == 0, done.stdout
    assert ("bafogpt cloud down gh-12-1" in tree.calls) is ended
    assert tree.calls[-1] == "bafogpt cloud reap --dry-run --json"


def test_a_machine_is_given_the_time_to_go(tree: Tree) -> None:
    tree.bafogpt(LEFT.format(down=3, times=2))  # 3: the run never came to be

    done = tree.run("scripts/ci/check-teardown", "gh-12-1", WATCH="true", LAUNCHED="failure", BAFOGPT_RETRY_S="0")

    assert done.returncode == 0, done.stdout
    assert tree.calls.count("bafogpt cloud reap --dry-run --json") == 3
    assert "nothing of gh-12-1 is left" in tree.summary


@pytest.mark.parametrize("reap", ['echo \'[{"name": "gh-12-1"}]\'', "echo 'no cloud answers'; exit 1"])
def test_a_machine_that_stays_and_a_cloud_that_is_silent_fail_the_workflow(tree: Tree, reap: str) -> None:
    tree.bafogpt(f"if [[ $2 == reap ]]; then {reap}; fi")

    done = tree.run("scripts/ci/check-teardown", "gh-12-1", WATCH="true", LAUNCHED="success", BAFOGPT_RETRY_S="0")

    assert done.returncode == 1
    assert "FAILED" in tree.summary and "bafogpt cloud reap" in tree.summary


def test_the_real_command_knows_every_word_that_the_scripts_use() -> None:
    import click
    import typer

    from bafogpt.cli.cloud import app

    cloud: Any = typer.main.get_command(app)
    context = click.Context(cloud)
    wanted: dict[str, set[str]] = {
        "plan": {"--gpus", "--infra"},
        "launch": {"--gpus", "--infra", "--max-cost", "--max-hours", "--name", "--yes", "--env", "--detach"},
        "status": set(),
        "cost": set(),
        "down": set(),
        "reap": {"--dry-run", "--json"},
    }
    for name, options in wanted.items():
        command = cloud.get_command(context, name)
        assert command is not None, f"bafogpt cloud {name}"
        known = {word for parameter in command.params for word in parameter.opts}
        assert options <= known, f"bafogpt cloud {name}: {options - known}"


@pytest.mark.slow  # syft starts twice
def test_an_sbom_names_what_is_there_and_refuses_what_is_not_our_image(tree: Tree, tmp_path: Path) -> None:
    os.rmdir(tree.root / ".venv" / "bin")
    os.rmdir(tree.root / ".venv")
    (tree.root / ".venv").symlink_to(ROOT / ".venv")
    site = tmp_path / "image" / "opt" / "bafogpt" / "lib" / "python3.12" / "site-packages"
    for name in ("bafogpt-0.1.0", "torch-2.13.0"):
        (site / f"{name}.dist-info").mkdir(parents=True)
        package, version = name.split("-")
        (site / f"{name}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
    file = tmp_path / "sbom.json"

    done = tree.run("scripts/ci/sbom", f"dir:{tmp_path / 'image'}", str(file))

    assert done.returncode == 0, done.stdout
    told = json.loads(file.read_text())
    assert told["spdxVersion"].startswith("SPDX-2")
    assert {"bafogpt", "torch"} <= {package["name"] for package in told["packages"]}

    (site / "torch-2.13.0.dist-info" / "METADATA").unlink()
    done = tree.run("scripts/ci/sbom", f"dir:{tmp_path / 'image'}", str(file))
    assert done.returncode == 1
    assert "torch not among them" in done.stdout
