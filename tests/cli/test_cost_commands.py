"""``bafogpt cloud plan``, ``cost`` and ``doctor`` as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bafogpt.core.errors import ExitCode
from bafogpt.runs import usage
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "tests" / "launch" / "catalog"


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SkyPilot catalog in the test's home, and no use of the network."""
    monkeypatch.delenv("SKY_RUNTIME_DIR", raising=False)
    shutil.copytree(CATALOG, tmp_path / "home" / ".sky" / "catalogs" / "v8")


def test_the_seed_run_on_four_l40_at_its_own_speed(cli, catalog):
    ran = cli("cloud", "plan", "pretrain", "--gpus", "L40:4", "--tokens-per-s", "1543", "--offline")

    assert ran.code == 0
    assert [line.split() for line in ran.out.splitlines()] == [
        ["CLOUD", "REGION", "MACHINE", "BUY", "$/HOUR", "TOKENS/S", "HOURS", "TOTAL", "$", "TOTAL", "R"],
        ["runpod", "CA", "4x_L40_SECURE", "spot", "2.40", "1,543", "36.0", "86.41", "1,555.41"],
        ["primeintellect", "CA", "plain__4xL40", "on", "demand", "4.00", "1,543", "36.0", "144.02", "2,592.35"],
        ["runpod", "CA", "4x_L40_SECURE", "on", "demand", "4.40", "1,543", "36.0", "158.42", "2,851.59"],
    ]
    assert "200,000,000 tokens on L40:4" in ran.err
    assert "MFU 3.5 % (given: --tokens-per-s)" in ran.err
    assert "SkyPilot's catalog on this machine" in ran.err
    assert "R18.00 a dollar, rate of " in ran.err


def test_the_same_at_the_projected_speed_as_json(cli, catalog):
    ran = cli("cloud", "plan", "pretrain", "--offline", "--on-demand", "--infra", "runpod", "--json")
    told = json.loads(ran.out)

    assert (told["gpus"], told["tokens"], told["speed"]["basis"]) == ("L40:4", 200_000_000, "projected")
    assert set(told["projection"]["assumptions"]) == {"expected", "pessimistic"}
    assert told["projection"]["expected"]["step"]["tokens_per_s"] == told["speed"]["tokens_per_s"]
    assert told["projection"]["recommended"]["need_gb"] < told["projection"]["card"]["memory"] / 1e9 - 2
    (offer,) = told["offers"]
    assert offer["usd_per_hour"] == 4.4
    assert offer["hours"] == pytest.approx(200e6 / told["speed"]["tokens_per_s"] / 3600)
    assert offer["usd"] == pytest.approx(4.4 * offer["hours"])
    assert offer["zar"] == pytest.approx(told["rate"]["zar_per_usd"] * offer["usd"])


def test_an_a10_is_priced_and_too_small_for_the_whole_model(cli, catalog):
    ran = cli("cloud", "plan", "pretrain", "--gpus", "A10:1", "--offline")

    assert ran.out.splitlines()[1].startswith("lambda  us-east-1  gpu_1x_a10  on demand  1.25")
    assert "GB of each GPU, and A10 has 23.6 GB; this job would run out of memory" in ran.err
    assert "recommended: another card" in ran.err
    assert "launch the first" not in ran.err


def test_a_plan_says_what_its_projection_rests_on_and_which_values_are_projected_to_be_faster(cli, catalog):
    ran = cli("cloud", "plan", "pretrain", "--offline", "--set", "train.activation_checkpointing=full")

    assert "projected, not measured: " in ran.err
    assert "expected: products at 72% of 181 TFLOP/s, attention 35%, memory at 85% of 864 GB/s" in ran.err
    assert "pessimistic: products at 55%" in ran.err
    assert "warning" not in ran.err
    assert "recommended: --set train.batch.micro_batch_size=2 --set train.activation_checkpointing=selective" in ran.err
    given = cli("cloud", "plan", "pretrain", "--offline", "--tokens-per-s", "1543")
    assert "projected, not measured" not in given.err and "recommended" not in given.err


def test_a_job_that_the_trainer_would_refuse_is_told_why_and_not_to_take_another_card(cli, catalog):
    change = ("--set", "train.optimizer.name=adamw8bit-paged")
    ran = cli("cloud", "plan", "pretrain", "--gpus", "L40:4", "--offline", *change)

    assert "warning: adamw8bit-paged is for one process, here are 4; --set train.optimizer.name=adamw" in ran.err
    assert "recommended" not in ran.err


def test_fewer_tokens_and_ones_own_machines_and_quiet(cli, catalog):
    half = json.loads(cli("cloud", "plan", "pretrain", "--offline", "--tokens", "100000000", "--json").out)
    assert half["tokens"] == 100_000_000
    own = json.loads(cli("cloud", "plan", "pretrain", "--infra", "slurm", "--json").out)
    assert [each["usd"] for each in own["offers"]] == [0.0]
    assert cli("cloud", "plan", "pretrain", "--offline", "-q", "--spot").out == "runpod\n"


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--gpus", "A10G:4"], ExitCode.FAILURE, "no cloud offers A10G:4", "--gpus A10G:1 --infra aws"),
        (["--gpus", "L40:x"], ExitCode.USAGE, "not NAME or NAME:COUNT", "--gpus L40:4"),
        (["--tokens-per-s", "0"], ExitCode.USAGE, "must be above 0", "1543"),
        (["--tokens", "0"], ExitCode.USAGE, "--tokens", "--help"),
    ],
)
def test_bad_words(cli, catalog, words, code, message, hint):
    ran = cli("cloud", "plan", "pretrain", "--offline", *words)
    error, next_step = ran.err.splitlines()

    assert (ran.code, ran.out) == (code, "")
    assert message in error
    assert hint in next_step


def test_an_unreachable_bucket_is_no_reason_not_to_plan(cli, catalog, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("BAFOGPT_BUCKET", "s3://somewhere")
    monkeypatch.setenv("BAFOGPT_S3_ENDPOINT", "http://127.0.0.1:9")
    ran = cli("cloud", "plan", "pretrain", "--spot")

    assert ran.code == 0
    assert "earlier runs are not used" in ran.err
    assert "projected: MFU" in ran.err


def test_a_launch_shows_its_price_before_it_asks_and_a_dry_run_too(cli, catalog, monkeypatch):
    monkeypatch.setenv("BAFOGPT_BUCKET", "s3://somewhere")
    asked = cli("cloud", "launch", "pretrain", "--infra", "runpod")
    assert asked.code == ExitCode.USAGE
    assert "4.40 $/h (runpod" in asked.err
    assert "--yes" in asked.err.splitlines()[-1]
    dry = cli("cloud", "launch", "pretrain", "--infra", "runpod", "--dry-run", "--max-hours", "2", "--json")
    told = json.loads(dry.out)
    assert told["price"]["usd_per_hour"] == 4.4
    assert told["task"]["envs"]["BAFOGPT_MAX_HOURS"] == "2"


def test_what_runs_have_cost(cli, tmp_path, monkeypatch):
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("BAFOGPT_BUCKET", f"file://{tmp_path}/bucket")
    assert "no runs in" in cli("cloud", "cost").err
    store = RunStore(Bucket.open(f"file://{tmp_path}/bucket"))
    for name, hours in (("short", 1), ("long", 3)):
        store.save(RunRecord(name=name, trainer="pretrain", state="succeeded", created="", updated="", gpus="L40:4"))
        usage.write(
            store.folder(name), usage.AttemptUsage(attempt=1, started=0, seen=3600 * hours, price_per_hour=4.56)
        )

    ran = cli("cloud", "cost")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["NAME", "long", "short"]
    assert "total: 18.24 $ (R328.32) for 4.0 machine hours" in ran.err
    told = json.loads(cli("cloud", "cost", "short", "--json").out)
    assert (told["runs"][0]["usd"], told["total"]["runs"]) == (4.56, 1)
    assert cli("cloud", "cost", "nobody").code == ExitCode.JOB_NOT_FOUND


def test_the_doctor_ends_with_1_when_something_would_stop_a_launch(cli, tmp_path, monkeypatch):
    from bafogpt.launch import doctor

    bad = doctor.Check("bucket", doctor.check_bucket)
    good = doctor.Check("image", doctor.check_image)
    monkeypatch.setenv("BAFOGPT_BUCKET", f"file://{tmp_path}")
    monkeypatch.setattr(doctor, "CHECKS", (bad, good))
    ran = cli("cloud", "doctor", "--infra", "runpod")
    assert ran.code == 1
    assert "FAILED   bucket" in ran.out
    assert "→ export BAFOGPT_BUCKET=s3://MY-BUCKET" in ran.out
    assert "would fail: bucket" in ran.err
    told = json.loads(cli("cloud", "doctor", "--infra", "local", "--json").out)
    assert told["ok"] is True
    assert [each["name"] for each in told["checks"]] == ["bucket", "If-None-Match", "image"]
