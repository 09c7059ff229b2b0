"""Options mean the same in every command, alone and in groups."""

from __future__ import annotations

from dataclasses import fields

from bafogpt.cli.console import options
from bafogpt.cli.console.options import JobArgument, LaunchFlags
from bafogpt.cli.console.output import Output
from bafogpt.launch.plan import LaunchOptions


def run_stub(cli, stub, *words: str) -> tuple[LaunchFlags, Output]:
    got = []

    def run(job: JobArgument, flags: LaunchFlags, out: Output) -> None:
        got.append((flags, out))

    stub(run)
    ran = cli("stub", "run", "demo", *words)
    assert (ran.code, ran.err) == (0, "")
    return got[0]


def test_every_flag_of_a_launch_reaches_its_plan(cli, stub):
    given = {
        **{"gpus": "L40:4", "infra": "runpod", "image": "r/i:1", "name": "one", "nodes": 2},
        **{"max_cost": 5.0, "max_hours": 0.5},
        **dict.fromkeys(("spot", "managed", "retry_until_up", "clean"), True),
    }
    flags = ("--json", "-q", "-y", "--dry-run", "-d", "--spot", "--managed", "--retry-until-up", "--clean")
    repeated = ("--set", "a=1", "--set", "b.c=2", "--env", "HF_TOKEN", "--env", "X", "--profile", "3")
    values = ("--gpus", "L40:4", "--infra", "runpod", "--image", "r/i:1", "-n", "one", "--bucket", "s3://b")
    limits = ("--nodes", "2", "--max-cost", "5", "--max-hours", "0.5")

    got, out = run_stub(cli, stub, *flags, *repeated, *values, *limits)

    assert (out.json, out.quiet, got.yes, got.dry_run, got.detach, got.bucket) == (*[True] * 5, "s3://b")
    expected = LaunchOptions(**given, assignments=["a=1", "b.c=2", "train.profile=3"], env_names=["HF_TOKEN", "X"])
    assert got.for_plan() == expected
    assert all(getattr(expected, each.name) != each.default for each in fields(LaunchOptions))


def test_without_flags_the_defaults_hold(cli, stub):
    got, out = run_stub(cli, stub)

    assert got == LaunchFlags()
    assert (out.json, out.quiet) == (False, False)
    assert got.for_plan() == LaunchOptions(assignments=[])


def test_env_takes_a_name_and_does_not_repeat_a_value_that_was_given(cli, stub):
    def run(flags: options.LaunchFlags) -> None:
        raise AssertionError("not reached")

    stub(run)

    ran = cli("stub", "run", "--env", "HF_TOKEN=hf_secret")

    assert ran.code == 2
    assert "HF_TOKEN" in ran.err
    assert "hf_secret" not in ran.err
