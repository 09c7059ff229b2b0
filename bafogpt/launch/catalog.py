"""GPU prices: dollars an hour, by cloud and region.

They are SkyPilot's: the catalog in ``~/.sky/catalogs``, which SkyPilot refreshes from its public one. It is read here
as files, because importing SkyPilot takes seconds; :func:`refreshed_offers` has SkyPilot refresh it first where it is
too old. Without a catalog the few dated prices that come with bafogpt (``prices/``) are used.
"""

from __future__ import annotations

import csv
import difflib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from bafogpt.core import schema
from bafogpt.core.errors import NotFoundError
from bafogpt.launch import sky_probe

SHIPPED = Path(__file__).parent / "prices"
SELF_HOSTED = ("local", "slurm", "k8s", "kubernetes", "ssh")
"""Infra that is not billed by the hour."""
FRESH_S = 7 * 3600
"""Age up to which SkyPilot itself uses its catalog."""
UNBUNDLED = ("gcp",)
"""Clouds whose catalog prices a GPU without its machine: a row alone would be too cheap."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One machine that can be rented."""

    cloud: str
    """As in ``--infra``."""
    region: str
    machine: str
    gpu: str
    gpus: int
    spot: bool
    usd_per_hour: float
    """Dollars an hour for the whole machine."""

    def describe(self) -> str:
        """``"L40:4 at runpod on spot 2.40 $/h"``."""
        return f"{self.gpu}:{self.gpus} at {self.cloud}{' on spot' if self.spot else ''} {self.usd_per_hour:.2f} $/h"


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """All offers of a GPU from one source, cheapest first."""

    offers: tuple[Offer, ...]
    source: str
    as_of: date
    shipped: bool
    """Whether these are the prices that come with bafogpt."""

    def describe(self) -> str:
        """The source and its date."""
        return f"{self.source}, {self.as_of.isoformat()}"


def catalog_folder() -> Path | None:
    """SkyPilot's catalog on this machine (``…/catalogs/v8``), the newest version; None where there is none."""
    base = Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home()) / ".sky" / "catalogs"
    versions = [each for each in base.glob("v*") if each.name[1:].isdigit() and any(each.glob("*/vms.csv"))]
    return max(versions, key=lambda each: int(each.name[1:]), default=None)


def has_prices(infra: str) -> bool:
    """Whether that cloud's catalog is on this machine, so that a GPU that is not in it is not offered there."""
    cloud, _ = _cloud_and_region(infra)
    folder = catalog_folder()
    return cloud is None or (folder is not None and cloud not in UNBUNDLED and (folder / cloud / "vms.csv").is_file())


def cached_offers(gpu: str, count: int = 1, infra: str | None = None, spot: bool | None = None) -> PriceList:
    """The offers of ``count`` GPUs in one machine, from the files on this machine.

    ``infra`` is SkyPilot's (``runpod``, ``aws/us-east-1``), None is every cloud; ``spot`` None is both kinds.
    Raises :class:`NotFoundError` with the nearest offers where there is none.
    """
    folder, source, as_of = _source()
    cloud, region = _cloud_and_region(infra)
    offers = [
        each
        for each in _read_offers(folder, cloud, gpu)
        if each.gpus == count and region in (None, each.region) and spot in (None, each.spot)
    ]
    if not offers:
        raise _not_offered(f"{source}, {as_of}", _read_offers(folder), gpu, count, infra, spot)
    offers.sort(key=lambda each: (each.usd_per_hour, each.cloud, each.machine))
    return PriceList(offers=tuple(offers), source=source, as_of=as_of, shipped=folder == SHIPPED)


def refreshed_offers(
    gpu: str,
    count: int = 1,
    infra: str | None = None,
    spot: bool | None = None,
    *,
    deadline_s: float = 45.0,
    clock: Callable[[], float] = time.time,
) -> PriceList:
    """As :func:`cached_offers`, after SkyPilot has refreshed a catalog that is missing or older than :data:`FRESH_S`.

    Where SkyPilot is not installed, has no network or exceeds ``deadline_s``, the files stay as they are.
    """
    if _is_stale(catalog_folder(), clock()):
        sky_probe.ask("catalog", gpu, *([infra.partition("/")[0]] if infra else []), deadline_s=deadline_s)
    return cached_offers(gpu, count, infra, spot)


def cheapest_per_cloud(offers: Sequence[Offer]) -> list[Offer]:
    """The cheapest offer of each cloud, on demand and on spot; cheapest first."""
    best: dict[tuple[str, bool], Offer] = {}
    for each in sorted(offers, key=lambda each: each.usd_per_hour):
        best.setdefault((each.cloud, each.spot), each)
    return list(best.values())


def _is_stale(folder: Path | None, now: float) -> bool:
    """Whether SkyPilot would refresh the catalog. It never refreshes files without an ``.md5``."""
    if folder is None:
        return True
    fetched = [
        each for each in folder.glob("*/vms.csv") if (folder / ".meta" / each.parent.name / "vms.csv.md5").exists()
    ]
    return bool(fetched) and max(each.stat().st_mtime for each in fetched) + FRESH_S < now


def _source() -> tuple[Path, str, date]:
    """(a folder of ``CLOUD/vms.csv``, its description, its date)."""
    folder = catalog_folder()
    if folder is None:
        recorded: date = schema.load_yaml(SHIPPED / "origin.yaml")["recorded"]
        return SHIPPED, "prices that come with bafogpt", recorded
    newest = max(each.stat().st_mtime for each in folder.glob("*/vms.csv"))
    return folder, "SkyPilot's catalog on this machine", datetime.fromtimestamp(newest, UTC).date()


def _cloud_and_region(infra: str | None) -> tuple[str | None, str | None]:
    """``aws/us-east-1`` in its parts; ``*`` is any, as in SkyPilot."""
    cloud, _, rest = (infra or "").partition("/")
    region = rest.partition("/")[0]
    return cloud.lower() if cloud not in ("", "*") else None, region if region not in ("", "*") else None


def _read_offers(folder: Path, cloud: str | None = None, gpu: str | None = None) -> list[Offer]:
    """The offers in a catalog's files: the cheapest for each cloud, region, kind, GPU and count."""
    best: dict[tuple[str, str, str, int, bool], Offer] = {}
    for path in sorted(folder.glob("*/vms.csv")):
        if path.parent.name in UNBUNDLED or cloud not in (None, path.parent.name):
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = (row.get("AcceleratorName") or "").lower()
                if not name or (gpu is not None and name != gpu.lower()):
                    continue
                for each in _offers(path.parent.name, row):
                    key = (each.cloud, each.region, each.gpu, each.gpus, each.spot)
                    if key not in best or each.usd_per_hour < best[key].usd_per_hour:
                        best[key] = each
    return list(best.values())


def _offers(cloud: str, row: dict[str, str]) -> Iterator[Offer]:
    """The offers of one row: on demand, on spot, both or neither; none for a row that cannot be read."""
    machine, count = row.get("InstanceType") or "", _number(row.get("AcceleratorCount"))
    if not machine or not count.is_integer() or count < 1:
        return
    for column, spot in (("Price", False), ("SpotPrice", True)):
        price = _number(row.get(column))
        if price > 0:
            yield Offer(
                cloud=cloud,
                region=row.get("Region") or "",
                machine=machine,
                gpu=row["AcceleratorName"],
                gpus=int(count),
                spot=spot,
                usd_per_hour=round(price, 6),
            )


def _number(text: str | None) -> float:
    """0 for a field that is no number."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _not_offered(
    source: str, offers: list[Offer], gpu: str, count: int, infra: str | None, spot: bool | None
) -> NotFoundError:
    """The error for a GPU without an offer, with the nearest ones."""
    kind = {None: "", True: " on spot", False: " on demand"}[spot]
    message = f"no cloud offers {gpu}:{count}{kind}{f' at {infra}' if infra else ''} ({source})"
    near = _nearest(offers, gpu, count, spot)
    if not near:
        return NotFoundError(message, "sky show-gpus")
    first = near[0]
    return NotFoundError(
        f"{message}; the nearest are {'; '.join(each.describe() for each in near)}",
        f"--gpus {first.gpu}:{first.gpus} --infra {first.cloud}{' --spot' if first.spot else ''}",
    )


def _nearest(offers: list[Offer], gpu: str, count: int, spot: bool | None, most: int = 3) -> list[Offer]:
    """The nearest offers: of the same GPU, then of similar names, then any; by count and price."""
    names = {each.gpu.upper() for each in offers}
    similar = difflib.get_close_matches(gpu.upper(), sorted(names), n=3, cutoff=0.5)

    def rank(offer: Offer) -> tuple[int, int, float]:
        name = offer.gpu.upper()
        return 0 if name == gpu.upper() else 1 if name in similar else 2, abs(offer.gpus - count), offer.usd_per_hour

    best: dict[tuple[str, int, str], Offer] = {}
    for each in sorted(offers, key=rank):
        if spot in (None, each.spot) or each.gpu.upper() == gpu.upper():
            best.setdefault((each.gpu, each.gpus, each.cloud), each)
    return list(best.values())[:most]
