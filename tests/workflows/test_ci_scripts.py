"""The scripts that workflows call, except those that publish, with stand-ins for the commands around them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.tree import Tree

FORM = {"JOB": "pretrain", "GPUS": "L40:4", "INFRA": "runpod", "MAX_COST": "20", "MAX_HOURS": "5"}
RUN = {"RUN": "gh-12-1", "WATCH": "true"}
REAP = "bafogpt cloud reap --dry-run --json"


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


def test_as_root_keeps_path_home_and_environment_and_uses_sudo_only_if_needed(tree: Tree) -> None:
    tree.stand_in("id", "echo 1000")
    tree.stand_in("sudo", 'while [[ $1 != -- ]]; do shift; done; shift; exec /usr/bin/env -u PATH -u HOME "$@"')

    done = tree.run("scripts/ci/as-root", "/bin/bash", "-c", "echo $PATH $HOME $CI; exit 3", CI="true")

    assert done.returncode == 3
    assert done.stdout.strip() == f"{tree.environment['PATH']} {tree.environment['HOME']} true"
    tree.stand_in("id", "echo 0")
    assert tree.passes("scripts/ci/as-root", "echo", "root already") == "root already\n"
    assert [call.split()[0] for call in tree.calls].count("sudo") == 1


def test_free_disk_deletes_only_what_is_needed_and_only_on_github(tree: Tree, tmp_path: Path) -> None:
    runner = tmp_path / "runner"
    dotnet, android, ghc, binaries = parts = [
        runner / name for name in ("usr/share/dotnet", "usr/local/lib/android", "opt/ghc", "usr/bin")
    ]
    for folder in parts:
        folder.mkdir(parents=True)
    # each deleted folder frees 10 GB
    count = f"for each in {dotnet} {android} {ghc}; do [[ -e $each ]] || free+=+10; done"
    tree.stand_in("df", "free=20; " + count + '; printf "Avail\\n%sG\\n" $((free))')
    tree.stand_in("id", "echo 0")
    there = {"BAFOGPT_RUNNER_ROOT": str(runner)}

    assert tree.run("scripts/ci/free-disk", "40", **there).returncode == 2
    assert all(folder.exists() for folder in parts)

    tree.passes("scripts/ci/free-disk", "40", GITHUB_ACTIONS="true", **there)
    assert [folder.exists() for folder in parts] == [False, False, True, True]

    report = tree.refused("scripts/ci/free-disk", "90", GITHUB_ACTIONS="true", **there)
    assert "50 GB are free, 90 are needed" in report
    assert binaries.exists()


def test_a_tag_is_the_version_of_the_package_and_of_a_part_of_the_changelog(tree: Tree) -> None:
    (tree.root / "bafogpt" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    changelog = tree.root / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## 1.2.0 (unreleased)\n\n- new\n\n## 1.1.0 (2026-01-02)\n\n- old\n")

    assert "the package says 1.2.0" in tree.refused("scripts/ci/check-version", "v1.3.0")
    assert "no dated part for 1.2.0" in tree.refused("scripts/ci/check-version", "v1.2.0")

    changelog.write_text(changelog.read_text().replace("unreleased", "2026-02-03"))
    assert tree.passes("scripts/ci/check-version", "v1.2.0") == "1.2.0\n"
    assert tree.passes("scripts/ci/release-notes", "1.2.0") == "- new\n"
    assert tree.passes("scripts/ci/release-notes", "1.1.0") == "- old\n"
    assert "has no part for 9.9.9" in tree.refused("scripts/ci/release-notes", "9.9.9")

    tree.stand_in("gh", "cat >.notes")
    (tree.root / "dist").mkdir()
    (tree.root / "dist" / "bafogpt-1.2.0-py3-none-any.whl").touch()
    tree.passes("scripts/ci/announce", "v1.2.0", "dist")
    assert tree.calls[-1].startswith("gh release create v1.2.0 --verify-tag")
    assert tree.calls[-1].endswith("bafogpt-1.2.0-py3-none-any.whl")
    assert (tree.root / ".notes").read_text() == "- new\n"


def test_the_wheel_is_built_twice_alike_and_works_alone(tree: Tree) -> None:
    tree.link_venv()
    (tree.root / ".gitignore").write_text(".venv\ndist\n")
    tree.commit()

    tree.passes("scripts/ci/build-wheel", "dist")

    (wheel,) = (tree.root / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "bafogpt/cli/main.py" in names and "bafogpt/_project/jobs/pretrain.yaml" in names
    assert not any(name.startswith(("tests/", ".venv")) for name in names)


def test_a_plan_puts_prices_into_the_summary_and_starts_nothing(tree: Tree) -> None:
    tree.bafogpt("echo 'L40:4  4.56 $/h'")

    tree.passes("scripts/ci/launch", "plan", **FORM)

    assert tree.calls == ["bafogpt cloud plan pretrain --gpus L40:4 --infra runpod"]
    assert "4.56 $/h" in tree.summary and "pretrain on L40:4, at most 20 dollars" in tree.summary


def test_a_plan_that_fails_ends_the_workflow(tree: Tree) -> None:
    tree.bafogpt("echo 'bafogpt: no offer of L41' >&2; exit 7")

    assert tree.run("scripts/ci/launch", "plan", **FORM).returncode == 7
    assert "no offer of L41" in tree.summary


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
def test_a_field_of_the_form_that_could_be_anything_else_is_refused(tree: Tree, name: str, value: str) -> None:
    tree.bafogpt()

    done = tree.run("scripts/ci/launch", "launch", **(FORM | RUN | {name: value}))

    assert done.returncode == 2
    assert name in done.stdout and "hint:" in done.stdout
    assert tree.calls == []


def test_a_launch_passes_on_the_limits_the_session_token_and_the_exit_code(tree: Tree) -> None:
    tree.bafogpt("exit 5")

    done = tree.run("scripts/ci/launch", "launch", **FORM, **RUN, AWS_SESSION_TOKEN="planted-secret")

    assert done.returncode == 5
    assert tree.calls == [
        "bafogpt cloud launch pretrain --gpus L40:4 --infra runpod --max-cost 20 --max-hours 5 --name gh-12-1 --yes"
        " --env AWS_SESSION_TOKEN"
    ]
    assert "planted-secret" not in done.stdout + tree.summary


def test_an_unwatched_launch_is_detached(tree: Tree) -> None:
    tree.bafogpt()

    tree.passes("scripts/ci/launch", "launch", **FORM, **(RUN | {"WATCH": "false"}))

    assert tree.calls[0].endswith("--yes --detach")


def test_the_summary_has_every_part_also_after_one_failed(tree: Tree) -> None:
    tree.bafogpt(
        "case $2 in status) echo running;; cost) echo 'no price known' >&2; exit 4;; show) echo page >\"$5\";; esac"
    )
    github = {"GITHUB_RUN_ID": "12", "GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "a/b"}

    tree.passes("scripts/ci/run-summary", "gh-12-1", "dist", BAFOGPT_BUCKET="s3://mine", **github)

    for part in ("running", "no price known", "s3://mine/runs/gh-12-1", "https://example.org/a/b/actions/runs/12"):
        assert part in tree.summary
    assert (tree.root / "dist" / "gh-12-1.html").read_text() == "page\n"


@pytest.mark.parametrize(
    ("watch", "launched", "ended"),
    [("true", "success", True), ("true", "failure", True), ("false", "cancelled", True), ("false", "success", False)],
)
def test_every_run_is_ended_except_a_detached_one(tree: Tree, watch: str, launched: str, ended: bool) -> None:
    tree.bafogpt("if [[ $2 == reap ]]; then echo '[]'; fi")

    tree.passes("scripts/ci/check-teardown", "gh-12-1", WATCH=watch, LAUNCHED=launched)

    assert ("bafogpt cloud down gh-12-1" in tree.calls) is ended
    assert tree.calls[-1] == REAP


FOUND = """echo '[{"name": "gh-12-1"}]'"""
FOUND_TWICE = f"echo x >>.asked; if [[ $(wc -l <.asked) -le 2 ]]; then {FOUND}; else echo '[]'; fi"


def teardown(tree: Tree, reap: str) -> int:
    """Exit code of check-teardown where ``down`` finds no run and ``reap`` runs this."""
    tree.bafogpt(f"case $2 in down) exit 3;; reap) {reap};; esac")
    words = {"WATCH": "true", "LAUNCHED": "failure", "BAFOGPT_RETRY_S": "0"}
    return tree.run("scripts/ci/check-teardown", "gh-12-1", **words).returncode


def test_teardown_waits_until_the_machine_is_gone(tree: Tree) -> None:
    assert teardown(tree, FOUND_TWICE) == 0
    assert tree.calls.count(REAP) == 3
    assert "nothing of gh-12-1 is left" in tree.summary


@pytest.mark.parametrize("reap", [FOUND, "echo 'no cloud answers'; exit 1"], ids=["stays", "cloud silent"])
def test_teardown_fails_when_a_machine_stays_or_the_cloud_does_not_answer(tree: Tree, reap: str) -> None:
    assert teardown(tree, reap) == 1
    assert "FAILED" in tree.summary and "bafogpt cloud reap" in tree.summary


def test_the_real_command_has_every_option_that_the_scripts_use() -> None:
    import click
    import typer

    from bafogpt.cli.cloud import app

    cloud: Any = typer.main.get_command(app)
    wanted: dict[str, set[str]] = {
        "plan": {"--gpus", "--infra"},
        "launch": {"--gpus", "--infra", "--max-cost", "--max-hours", "--name", "--yes", "--env", "--detach"},
        "status": set(),
        "cost": set(),
        "down": set(),
        "reap": {"--dry-run", "--json"},
    }
    for name, options in wanted.items():
        command = cloud.get_command(click.Context(cloud), name)
        assert command is not None, f"bafogpt cloud {name}"
        known = {word for parameter in command.params for word in parameter.opts}
        assert options <= known, f"bafogpt cloud {name}: {options - known}"


@pytest.mark.slow  # syft starts twice
def test_an_sbom_lists_the_packages_and_refuses_another_image(tree: Tree, tmp_path: Path) -> None:
    tree.link_venv()
    site = tmp_path / "image" / "opt" / "bafogpt" / "lib" / "python3.12" / "site-packages"
    for package, version in (("bafogpt", "0.1.0"), ("torch", "2.13.0")):
        info = site / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    words = ("scripts/ci/sbom", f"dir:{tmp_path / 'image'}", str(tmp_path / "sbom.json"))

    tree.passes(*words)

    sbom = json.loads((tmp_path / "sbom.json").read_text())
    assert sbom["spdxVersion"].startswith("SPDX-2")
    assert {"bafogpt", "torch"} <= {package["name"] for package in sbom["packages"]}

    (info / "METADATA").unlink()
    assert "torch not among them" in tree.refused(*words)
