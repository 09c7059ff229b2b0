"""What a GPU costs an hour, and where.

The figures are SkyPilot's own: the catalog that it keeps in ``~/.sky/catalogs`` and renews from its public one when it
is used. It is read here as files, because importing SkyPilot takes seconds; :func:`refreshed_offers` has SkyPilot renew
it first where it is too old. Where there is none, the few dated prices that come with bafogpt (``catalog/``) stand in.
"""

from __future__ import annotations

import csv
import difflib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from bafogpt.core import schema
from bafogpt.core.errors import NotFoundError
from bafogpt.launch import sky_probe

SHIPPED = Path(__file__).parent / "prices"
OWN_MACHINES = ("local", "slurm", "k8s", "kubernetes", "ssh")
"""Where nobody sends a bill by the hour; SkyPilot counts them as 0 dollars too."""
FRESH_S = 7 * 3600
"""How old a catalog SkyPilot itself goes on using."""
APART = ("gcp",)
"""Clouds whose catalog prices a GPU apart from the machine around it: a row alone would be too cheap."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One machine that can be rented."""

    cloud: str
    """As ``--infra`` takes it."""
    region: str
    machine: str
    gpu: str
    gpus: int
    spot: bool
    usd_per_hour: float
    """Dollars an hour for the whole machine."""


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """Everything one source offers of a GPU, cheapest first."""

    offers: tuple[Offer, ...]
    source: str
    """Who says so."""
    as_of: date
    shipped: bool
    """Whether these are the prices that come with bafogpt, for want of better."""

    @property
    def words(self) -> str:
        """The source with its date, as it is shown beside every price."""
        return f"{self.source}, {self.as_of.isoformat()}"


def catalog_folder() -> Path | None:
    """SkyPilot's catalog on this machine (``…/catalogs/v8``), the newest of its formats; None where there is none."""
    base = Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home()) / ".sky" / "catalogs"
    formats = [each for each in base.glob("v*") if each.name[1:].isdigit() and any(each.glob("*/vms.csv"))]
    return max(formats, key=lambda each: int(each.name[1:]), default=None)


def has_prices(infra: str) -> bool:
    """Whether the prices of that cloud are at hand, so that a GPU that is not among them is not offered there."""
    cloud, _ = _cloud_and_region(infra)
    folder = catalog_folder() or SHIPPED
    return cloud is None or (cloud not in APART and folder != SHIPPED and (folder / cloud / "vms.csv").is_file())


def cached_offers(gpu: str, count: int = 1, infra: str | None = None, spot: bool | None = None) -> PriceList:
    """The offers of ``count`` GPUs in one machine that this machine knows of now. Nothing is asked of anybody.

    ``infra`` is SkyPilot's (``runpod``, ``aws/us-east-1``), None is anywhere; ``spot`` None is both kinds.
    Raises :class:`NotFoundError` with the nearest offers where there is none.
    """
    folder = catalog_folder()
    whole = _skypilot(folder) if folder else _shipped()
    return _chosen(whole, gpu, count, infra, spot)


def refreshed_offers(
    gpu: str,
    count: int = 1,
    infra: str | None = None,
    spot: bool | None = None,
    *,
    deadline_s: float = 45.0,
    clock: Callable[[], float] = time.time,
) -> PriceList:
    """As :func:`cached_offers`, but SkyPilot renews its catalog first where that is missing or older than it allows.

    A SkyPilot that is not installed, has no network or takes longer than ``deadline_s`` changes nothing.
    """
    if _stale(catalog_folder(), clock()):
        sky_probe.ask("catalog", gpu, *([infra.partition("/")[0]] if infra else []), deadline_s=deadline_s)
    return cached_offers(gpu, count, infra, spot)


def _stale(folder: Path | None, now: float) -> bool:
    """Whether SkyPilot would renew the catalog. Files that a person laid there have no ``.md5``: they stay."""
    if folder is None:
        return True
    fetched = [
        each for each in folder.glob("*/vms.csv") if (folder / ".meta" / each.parent.name / "vms.csv.md5").exists()
    ]
    return bool(fetched) and max(each.stat().st_mtime for each in fetched) + FRESH_S < now


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A folder of ``CLOUD/vms.csv``, and what is said of it."""

    folder: Path
    source: str
    as_of: date
    shipped: bool


def _skypilot(folder: Path) -> _Source:
    newest = max(each.stat().st_mtime for each in folder.glob("*/vms.csv"))
    as_of = datetime.fromtimestamp(newest, UTC).date()
    return _Source(folder=folder, source="SkyPilot's catalog on this machine", as_of=as_of, shipped=False)


def _shipped() -> _Source:
    origin = schema.load_yaml(SHIPPED / "origin.yaml")
    return _Source(folder=SHIPPED, source="prices that come with bafogpt", as_of=origin["recorded"], shipped=True)


def _chosen(whole: _Source, gpu: str, count: int, infra: str | None, spot: bool | None) -> PriceList:
    cloud, region = _cloud_and_region(infra)
    offers = [
        each
        for each in _cheapest(_rows(whole.folder, cloud, only=gpu))
        if each.gpus == count and (region is None or each.region == region) and spot in (None, each.spot)
    ]
    if not offers:
        raise _nowhere(whole, gpu, count, infra, spot)
    offers.sort(key=lambda each: (each.usd_per_hour, each.cloud, each.machine))
    return PriceList(offers=tuple(offers), source=whole.source, as_of=whole.as_of, shipped=whole.shipped)


def _cloud_and_region(infra: str | None) -> tuple[str | None, str | None]:
    """``aws/us-east-1`` in its parts; ``*`` is any, as in SkyPilot."""
    cloud, _, rest = (infra or "").partition("/")
    region = rest.partition("/")[0]
    return cloud.lower() if cloud not in ("", "*") else None, region if region not in ("", "*") else None


def _rows(folder: Path, cloud: str | None, only: str | None = None) -> Iterator[Offer]:
    """Every offer in a catalog's files, of one GPU or of all; a row that cannot be read is left out."""
    for path in sorted(folder.glob("*/vms.csv")):
        name = path.parent.name
        if name in APART or (cloud is not None and cloud != name):
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                gpu = row.get("AcceleratorName") or ""
                if gpu and (only is None or gpu.lower() == only.lower()):
                    yield from _offers(name, gpu, row)


def _offers(cloud: str, gpu: str, row: dict[str, str]) -> Iterator[Offer]:
    """What one row offers: on demand, on spot, both or neither."""
    try:
        count = float(row["AcceleratorCount"])
    except (KeyError, TypeError, ValueError):
        return
    machine = row.get("InstanceType") or ""
    if not machine or not count.is_integer() or count < 1:
        return
    for column, spot in (("Price", False), ("SpotPrice", True)):
        try:
            price = float(row.get(column) or "nan")
        except ValueError:
            continue
        if price > 0:
            yield Offer(
                cloud=cloud,
                region=row.get("Region") or "",
                machine=machine,
                gpu=gpu,
                gpus=int(count),
                spot=spot,
                usd_per_hour=round(price, 6),
            )


def _cheapest(offers: Iterable[Offer]) -> list[Offer]:
    """One offer for each cloud, region, kind of buying and number of GPUs: the cheapest machine, the cheapest zone."""
    best: dict[tuple[str, str, str, int, bool], Offer] = {}
    for each in offers:
        key = (each.cloud, each.region, each.gpu, each.gpus, each.spot)
        if key not in best or each.usd_per_hour < best[key].usd_per_hour:
            best[key] = each
    return list(best.values())


def cheapest_per_cloud(offers: Sequence[Offer]) -> list[Offer]:
    """The cheapest region of each cloud, on demand and on spot; in the order given."""
    seen: set[tuple[str, bool]] = set()
    kept = []
    for each in sorted(offers, key=lambda each: each.usd_per_hour):
        if (each.cloud, each.spot) not in seen:
            seen.add((each.cloud, each.spot))
            kept.append(each)
    return [each for each in offers if each in kept]


def _nowhere(whole: _Source, gpu: str, count: int, infra: str | None, spot: bool | None) -> NotFoundError:
    """That nothing is offered, and what comes nearest: the same GPU in another number or place, else another GPU."""
    everything = _cheapest(_rows(whole.folder, None))
    kind = {None: "", True: " on spot", False: " on demand"}[spot]
    where = f" at {infra}" if infra else ""
    offers = _near(everything, gpu, count, spot)
    named = "; ".join(
        f"{e.gpu}:{e.gpus} at {e.cloud}{' on spot' if e.spot else ''} {e.usd_per_hour:.2f} $/h" for e in offers
    )
    first = offers[0] if offers else None
    hint = f"--gpus {first.gpu}:{first.gpus} --infra {first.cloud}{' --spot' if first.spot else ''}" if first else ""
    return NotFoundError(
        f"nobody offers {gpu}:{count}{kind}{where} ({whole.source}, {whole.as_of})"
        + (f"; the nearest are {named}" if named else ""),
        hint or "sky show-gpus",
    )


def _near(everything: Sequence[Offer], gpu: str, count: int, spot: bool | None, most: int = 3) -> list[Offer]:
    """The nearest offers: the same GPU, then names that look like it, then any; by count and price."""
    names = sorted({each.gpu for each in everything})
    same = [name for name in names if name.lower() == gpu.lower()]
    alike = difflib.get_close_matches(gpu.upper(), [name.upper() for name in names], n=3, cutoff=0.5)
    ranks = dict.fromkeys(same, 0) | {name: 1 for name in names if name.upper() in alike and name not in same}
    ordered = sorted(
        (each for each in everything if spot is None or each.spot == spot or each.gpu in same),
        key=lambda each: (ranks.get(each.gpu, 2), abs(each.gpus - count), each.usd_per_hour),
    )
    found: dict[tuple[str, int, str], Offer] = {}
    for each in ordered:
        found.setdefault((each.gpu, each.gpus, each.cloud), each)
    return list(found.values())[:most]
