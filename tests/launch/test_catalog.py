"""GPU prices: from a test's catalog, compared with SkyPilot itself, and without a catalog."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bafogpt.core.errors import NotFoundError
from bafogpt.launch import catalog as prices
from bafogpt.launch import sky_probe
from tests.launch.prices import install_catalog


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install_catalog(tmp_path / "home", monkeypatch)


@pytest.fixture
def no_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SKY_RUNTIME_DIR", raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Questions to SkyPilot, which does not answer."""
    questions: list[tuple[str, ...]] = []
    monkeypatch.setattr(sky_probe, "ask", lambda *words, deadline_s: questions.append(words))
    return questions


def offered(found: prices.PriceList) -> list[tuple[str, str, bool, float]]:
    return [(each.cloud, each.region, each.spot, each.usd_per_hour) for each in found.offers]


def test_every_offer_of_a_gpu_cheapest_first_spot_beside_on_demand(catalog):
    assert offered(prices.cached_offers("L40", 4)) == [
        ("runpod", "CA", True, 2.4),
        ("runpod", "US", True, 2.8),
        ("primeintellect", "CA", False, 4.0),
        ("runpod", "CA", False, 4.4),
        ("runpod", "US", False, 4.8),
    ]


def test_each_cloud_has_its_cheapest_region(catalog):
    kept = prices.cheapest_per_cloud(prices.cached_offers("L40", 4).offers)

    assert [(each.cloud, each.spot, each.usd_per_hour) for each in kept] == [
        ("runpod", True, 2.4),
        ("primeintellect", False, 4.0),
        ("runpod", False, 4.4),
    ]


@pytest.mark.parametrize(
    ("gpu", "count", "cheapest"),
    [("L40", 4, 2.4), ("L40S", 4, 2.0), ("A10", 1, 1.25), ("A10G", 1, 0.3), ("l40s", 4, 2.0)],
)
def test_gpus_with_similar_names_are_different(catalog, gpu, count, cheapest):
    found = prices.cached_offers(gpu, count)

    assert found.offers[0].usd_per_hour == cheapest
    assert {each.gpu.lower() for each in found.offers} == {gpu.lower()}


@pytest.mark.parametrize(
    ("infra", "spot", "expected"),
    [
        ("runpod", False, [4.4, 4.8]),
        ("RunPod", True, [2.4, 2.8]),
        ("runpod/US", None, [2.8, 4.8]),
        ("*/US", None, [2.8, 4.8]),
        ("primeintellect", None, [4.0]),
    ],
)
def test_region_and_kind_filter_the_offers(catalog, infra, spot, expected):
    assert [each.usd_per_hour for each in prices.cached_offers("L40", 4, infra, spot).offers] == expected


def test_unreadable_rows_are_left_out(catalog):
    assert prices.cached_offers("A10G", 1).offers[-1].usd_per_hour == 1.0
    for count in (2, 8):
        with pytest.raises(NotFoundError):
            prices.cached_offers("A10G", count)


@pytest.mark.parametrize(
    ("gpu", "count", "infra", "spot", "near"),
    [
        ("A10G", 4, None, None, "A10G:1 at aws"),
        ("L40", 3, "runpod", False, "L40:4 at"),
        ("L40", 4, "lambda", None, "L40:4 at runpod on spot 2.40 $/h"),
        ("A10", 1, None, True, "A10:1 at lambda 1.25 $/h"),
        ("A11", 1, None, None, "A10"),
        ("TPU-v9", 1, None, None, "A10G:1 at aws on spot 0.30 $/h"),
    ],
)
def test_a_gpu_without_an_offer_names_the_nearest_and_the_hint_is_one(catalog, gpu, count, infra, spot, near):
    with pytest.raises(NotFoundError) as caught:
        prices.cached_offers(gpu, count, infra, spot)

    assert caught.value.message.startswith(f"no cloud offers {gpu}:{count}")
    assert near in caught.value.message
    words = caught.value.hint.split()
    nearest, _, number = words[words.index("--gpus") + 1].partition(":")
    assert prices.cached_offers(nearest, int(number), words[words.index("--infra") + 1], "--spot" in words).offers


def test_without_a_catalog_the_shipped_prices_are_used(no_catalog):
    found = prices.cached_offers("L40", 4)

    assert found.shipped
    assert offered(found) == [
        ("runpod", "CA", True, 2.76),
        ("primeintellect", "CA", False, 4.0),
        ("runpod", "CA", False, 4.56),
    ]
    assert found.describe() == f"prices that come with bafogpt, {found.as_of.isoformat()}"
    assert prices.cached_offers("A10").offers[0].usd_per_hour == 1.29
    assert not prices.has_prices("runpod")  # that a GPU is not among a few dated prices says nothing


def test_a_cloud_that_prices_gpus_without_their_machine_is_left_out(catalog):
    assert "gcp" not in {each.cloud for each in prices.cached_offers("L40", 4).offers}
    assert not prices.has_prices("gcp")
    assert prices.has_prices("runpod")
    assert not prices.has_prices("azure")


def fetched(catalog: Path, age_s: float) -> float:
    """Make the catalog one that SkyPilot fetched ``age_s`` seconds ago; returns the time that it is now."""
    for path in catalog.glob("*/vms.csv"):
        mark = catalog / ".meta" / path.parent.name / "vms.csv.md5"
        mark.parent.mkdir(parents=True)
        mark.touch()
        os.utime(path, (1_000_000, 1_000_000))
    return 1_000_000 + age_s


def test_an_old_catalog_is_refreshed_first(catalog, asked):
    now = fetched(catalog, age_s=prices.FRESH_S + 1)

    assert prices.refreshed_offers("L40", 4, "runpod/CA", clock=lambda: now).offers[0].usd_per_hour == 2.4
    assert asked == [("catalog", "L40", "runpod")]


def test_a_fresh_catalog_and_one_without_checksums_are_not_refreshed(catalog, asked):
    prices.refreshed_offers("L40", 4, clock=lambda: 4e9)
    now = fetched(catalog, age_s=60)
    prices.refreshed_offers("L40", 4, clock=lambda: now)

    assert asked == []


def test_without_a_catalog_and_an_answer_there_is_still_a_price(no_catalog, asked):
    assert prices.refreshed_offers("L40", 4).shipped
    assert asked == [("catalog", "L40")]


def test_the_newest_catalog_version_is_read(catalog):
    shutil.copytree(catalog, catalog.parent / "v10")
    (catalog.parent / "v11").mkdir()

    assert prices.catalog_folder() == catalog.parent / "v10"


def test_a_skypilot_that_misses_its_deadline_is_ended(no_catalog):
    assert sky_probe.ask("clouds", deadline_s=0.2) is None


@pytest.mark.slow
def test_the_offers_equal_skypilots(catalog):
    pytest.importorskip("sky")
    for cloud in ("runpod", "lambda", "primeintellect"):  # for AWS it wants an account
        assert sky_probe.ask("catalog", "L40", cloud, deadline_s=60) == {"clouds": {cloud: "ok"}}
        script = (
            "import json, sys; from sky import catalog\n"
            f"found = catalog.list_accelerators(clouds=['{cloud}'], all_regions=True)\n"
            "rows = [(i.accelerator_name, i.accelerator_count, i.region, i.price, i.spot_price)"
            " for each in found.values() for i in each]\n"
            "print('ANSWER', json.dumps(rows))"
        )
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        best: dict[tuple[str, int, str, bool], float] = {}
        for gpu, count, region, *money in json.loads(told.partition("ANSWER")[2]):
            for spot, price in enumerate(money):
                if price == price:
                    key = (gpu, int(count), region, bool(spot))
                    best[key] = min(price, best.get(key, price))
        mine = {
            (each.gpu, each.gpus, each.region, each.spot): each.usd_per_hour
            for gpu, count in {key[:2] for key in best}
            for each in prices.cached_offers(gpu, count, cloud).offers
        }
        assert mine == best
