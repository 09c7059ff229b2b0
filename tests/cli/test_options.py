"""Options mean the same in every command."""

from __future__ import annotations

from bafogpt.cli.console import options


def test_every_option_reads_what_it_says(cli, stub):
    got = {}

    def run(
        job: options.JobArgument,
        json: options.JsonOption = False,
        quiet: options.QuietOption = False,
        yes: options.YesOption = False,
        dry_run: options.DryRunOption = False,
        detach: options.DetachOption = False,
        follow: options.FollowOption = False,
        overrides: options.SetOption = None,
        env: options.EnvOption = None,
        gpus: options.GpusOption = None,
        infra: options.InfraOption = None,
        image: options.ImageOption = None,
        name: options.NameOption = None,
        bucket: options.BucketOption = None,
    ) -> None:
        got.update(locals())

    stub(run)

    flags = ("--json", "-q", "-y", "--dry-run", "-d", "-f")
    repeated = ("--set", "a=1", "--set", "b.c=2", "--env", "HF_TOKEN", "--env", "X")
    values = ("--gpus", "L40:4", "--infra", "runpod", "--image", "r/i:1", "-n", "one", "--bucket", "s3://b")
    ran = cli("stub", "run", "demo", *flags, *repeated, *values)

    assert (ran.code, ran.err) == (0, "")
    got.pop("got", None)
    assert got == {
        **dict.fromkeys(("json", "quiet", "yes", "dry_run", "detach", "follow"), True),
        **{"job": "demo", "overrides": ["a=1", "b.c=2"], "env": ["HF_TOKEN", "X"], "gpus": "L40:4"},
        **{"infra": "runpod", "image": "r/i:1", "name": "one", "bucket": "s3://b"},
    }


def test_what_is_not_given_is_none_or_false(cli, stub):
    got = {}

    def run(overrides: options.SetOption = None, env: options.EnvOption = None, json: options.JsonOption = False):
        got.update(overrides=overrides, env=env, json=json)

    stub(run)
    cli("stub", "run")

    assert got == {"overrides": None, "env": None, "json": False}


def test_env_takes_a_name_and_does_not_repeat_a_value_that_was_given(cli, stub):
    def run(env: options.EnvOption = None) -> None:
        raise AssertionError("not reached")

    stub(run)

    ran = cli("stub", "run", "--env", "HF_TOKEN=hf_secret")

    assert ran.code == 2
    assert "HF_TOKEN" in ran.err
    assert "hf_secret" not in ran.err
