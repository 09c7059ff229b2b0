"""The price of a launch and its limits, and both in the plan."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import ConfigError, NotFoundError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.launch import plan, quote
from bafogpt.launch.plan import LaunchOptions
from bafogpt.launch.quote import ExchangeRate
from tests.launch.prices import install_catalog
from tests.launch.test_throughput import job

SETTINGS = Settings(bucket="s3://somewhere", s3_endpoint="", home="unused")


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BAFOGPT_PRICE_PER_HOUR", raising=False)
    return install_catalog(tmp_path / "home", monkeypatch)


def task(gpus: str | None = "L40:4", **more: Any) -> dict[str, Any]:
    resources = {**({"accelerators": gpus} if gpus else {}), **more.pop("resources", {})}
    return {"resources": resources, **more}


def test_the_cheapest_offer_on_demand_with_hours_and_total():
    price = quote.compute(job(), task(), "runpod")

    assert (price.usd_per_hour, price.offer and price.offer.machine) == (4.4, "4x_L40_SECURE")
    assert price.hours is not None
    assert price.usd == pytest.approx(price.hours * 4.4)
    assert price.describe(ExchangeRate(zar_per_usd=18.0, as_of=None)).startswith("4.40 $/h (runpod; SkyPilot's catalog")
    assert f"{price.usd:.2f} $ (R{price.usd * 18:,.2f}), projected: MFU " in price.describe(
        ExchangeRate(zar_per_usd=18, as_of=None)
    )


def test_spot_and_nodes_are_in_the_price():
    price = quote.compute(job(), task(num_nodes=2, resources={"use_spot": True}), "runpod")

    assert price.usd_per_hour == 4.8
    assert "spot" in price.describe()
    one = quote.compute(job(), task(resources={"use_spot": True}), "runpod")
    assert price.hours is not None and one.hours is not None
    assert one.hours / 2 < price.hours < 0.6 * one.hours  # two machines share a network
    assert price.usd == pytest.approx(price.hours * 4.8)


def test_price_and_limits_are_in_the_task():
    price = quote.compute(job(), task(), "runpod", max_cost=20.0, max_hours=2.5)

    assert price.task_options() == {
        "envs": {"BAFOGPT_PRICE_PER_HOUR": "4.4", "BAFOGPT_MAX_COST": "20", "BAFOGPT_MAX_HOURS": "2.5"},
        "resources": {"max_hourly_cost": 4.4},  # a more expensive machine would exceed the budget
    }
    assert price.usd == pytest.approx(2.5 * 4.4)
    assert price.describe().endswith("at most 20.00 $ and 2.5 h, which is not enough for the whole job")


def test_a_sufficient_limit_has_no_warning():
    price = quote.compute(job(), task(), "runpod", max_cost=100.0)

    assert price.describe().endswith(", at most 100.00 $")


@pytest.mark.parametrize(
    ("infra", "limits", "message", "hint"),
    [
        ("runpod", {"max_cost": 4.39}, "--max-cost 4.39 does not pay for one hour at 4.40 $/h", "--max-cost 4.40"),
        ("runpod", {"max_cost": 1.0, "max_hours": 0.5}, "does not pay for --max-hours 0.5", "--max-cost 2.20"),
        ("runpod", {"max_cost": 0.0}, "--max-cost 0: must be above 0", "--max-cost 20"),
        ("runpod", {"max_hours": -1.0}, "--max-hours -1: must be above 0", "--max-hours 20"),
        ("runpod", {"max_hours": float("nan")}, "must be above 0", "--max-hours"),
        ("slurm", {"max_cost": 5.0}, "slurm is not billed by the hour", "--max-hours 8"),
        ("azure", {"max_cost": 5.0}, "azure has an unknown price", "--max-hours 8"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(infra, limits, message, hint):
    with pytest.raises(UsageError) as caught:
        quote.compute(job(), task(), infra, **limits)

    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("limits", [{"max_cost": 4.4}, {"max_cost": 2.2, "max_hours": 0.5}])
def test_the_smallest_limit_is_accepted(limits):
    assert quote.compute(job(), task(), "runpod", **limits).max_cost == limits["max_cost"]


def test_a_gpu_that_a_known_cloud_lacks_is_refused_and_an_unknown_cloud_has_an_unknown_price():
    with pytest.raises(NotFoundError, match="no cloud offers H100:8 on demand at runpod"):
        quote.compute(job(), task("H100:8"), "runpod")
    price = quote.compute(job(), task("H100:8"), "azure")

    assert (price.usd_per_hour, price.task_options(), price.describe()) == (None, {"envs": {}}, "unknown price")


def test_self_hosted_machines_have_their_own_price(monkeypatch):
    assert quote.compute(job(), task(), "slurm").task_options() == {"envs": {}}
    monkeypatch.setenv("BAFOGPT_PRICE_PER_HOUR", "0.5")
    assert quote.compute(job(), task(), "local", max_cost=1.0).task_options()["envs"]["BAFOGPT_PRICE_PER_HOUR"] == "0.5"
    monkeypatch.setenv("BAFOGPT_PRICE_PER_HOUR", "cheap")
    with pytest.raises(UsageError, match="BAFOGPT_PRICE_PER_HOUR is 'cheap'"):
        quote.compute(job(), task(), "local")


def test_the_exchange_rate_has_a_date_or_says_that_it_has_none():
    assert ExchangeRate.of(Settings()).as_of == date.fromisoformat(Settings().zar_per_usd_date)
    assert "rounded" in ExchangeRate.of(Settings()).describe()
    mine = ExchangeRate.of(Settings(zar_per_usd=17.31, zar_per_usd_date="2026-12-01"))
    assert mine.describe() == "R17.31 a dollar, rate of 2026-12-01"
    assert (
        ExchangeRate.of(Settings(zar_per_usd=17.31)).describe()
        == "R17.31 a dollar, rate without a date: set zar_per_usd_date"
    )
    with pytest.raises(ConfigError, match="zar_per_usd_date is 'today'"):
        ExchangeRate.of(Settings(zar_per_usd_date="today"))


def test_the_plan_of_a_launch_has_its_price_in_the_task():
    made = plan.make("pretrain", SETTINGS, LaunchOptions(infra="runpod", max_cost=30.0))

    assert made.quote.usd_per_hour == 4.4
    assert made.task["envs"]["BAFOGPT_PRICE_PER_HOUR"] == "4.4"
    assert made.task["envs"]["BAFOGPT_MAX_COST"] == "30"
    assert made.task["resources"]["max_hourly_cost"] == 4.4
    assert made.task["resources"]["accelerators"] == "L40:4"


def test_a_plan_without_a_cost_limit_has_no_price_ceiling():
    made = plan.make("pretrain", SETTINGS, LaunchOptions(infra="runpod"))

    assert "max_hourly_cost" not in made.task["resources"]
    assert "BAFOGPT_MAX_COST" not in made.task["envs"]


def test_limits_of_the_launch_override_those_of_the_job_file():
    assignment = ["supervisor.max_cost=25"]

    assert plan.make("pretrain", SETTINGS, LaunchOptions(infra="runpod", assignments=assignment)).quote.max_cost == 25.0
    first = plan.make("pretrain", SETTINGS, LaunchOptions(infra="runpod", assignments=assignment, max_cost=40.0))
    assert first.quote.max_cost == 40.0


@pytest.mark.slow
def test_skypilot_accepts_the_price_ceiling():
    sky = pytest.importorskip("sky")
    made = plan.make("pretrain", SETTINGS, LaunchOptions(infra="runpod", max_cost=30.0))
    values = {key: value for key, value in made.task.items() if key not in ("secrets", "workdir")}
    (resources,) = sky.Task.from_yaml_config(values).resources

    assert resources.max_hourly_cost == 4.4
