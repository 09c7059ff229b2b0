"""``bafogpt cloud plan``: every offer of a job's GPUs, with the hours and the money that the job would take on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from bafogpt.core.errors import BafoError, UsageError
from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.jobs import model_shape, resolve
from bafogpt.jobs import task as tasks
from bafogpt.jobs.job import Job
from bafogpt.launch import catalog, quote, throughput
from bafogpt.launch.catalog import Offer, PriceList
from bafogpt.launch.quote import ExchangeRate
from bafogpt.launch.throughput import Measured, Projection, Throughput
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest

BUCKET_PATIENCE_S = 5.0
"""How long a bucket out of reach may hold a plan up, which can do without it."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One offer, and what the job would take on it."""

    offer: Offer
    nodes: int
    usd_per_hour: float
    """For all machines."""
    hours: float | None
    usd: float | None
    zar: float | None

    def to_dict(self) -> dict[str, Any]:
        whole = {"nodes": self.nodes, "hours": self.hours, "usd": self.usd, "zar": self.zar}
        return {**asdict(self.offer), "usd_per_hour": self.usd_per_hour, **whole}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Everything that the plan shows, cheapest offer first."""

    gpu: str
    gpus: int
    """In each machine."""
    nodes: int
    tokens: int
    speed: Throughput | None
    prices: PriceList
    rate: ExchangeRate
    estimates: tuple[Estimate, ...]
    projection: Projection | None = None
    """What the models of memory and time say, also where ``speed`` is measured or given."""
    cautions: tuple[str, ...] = ()
    """What speaks against it, in words."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpus": f"{self.gpu}:{self.gpus}",
            "nodes": self.nodes,
            "tokens": self.tokens,
            "speed": asdict(self.speed) if self.speed else None,
            "projection": self.projection.to_dict() if self.projection else None,
            "prices": {
                "source": self.prices.source,
                "as_of": self.prices.as_of.isoformat(),
                "shipped": self.prices.shipped,
            },
            "rate": self.rate.to_dict(),
            "cautions": list(self.cautions),
            "offers": [each.to_dict() for each in self.estimates],
        }


def look(
    job_name: str,
    settings: Settings,
    *,
    gpus: str | None = None,
    infra: str | None = None,
    spot: bool | None = None,
    tokens: int | None = None,
    tokens_per_s: float | None = None,
    assignments: Sequence[str] = (),
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """The forecast of a job. ``infra`` None is anywhere, whatever the settings say: that is what one compares.

    Raises :class:`~bafogpt.core.errors.ConfigError`, :class:`UsageError`, and
    :class:`~bafogpt.core.errors.NotFoundError` for a GPU that nobody offers.
    """
    if tokens_per_s is not None and not tokens_per_s > 0:
        raise UsageError(f"--tokens-per-s {tokens_per_s:g}: must be above 0", "--tokens-per-s 1543")
    source = resolve.find(job_name, settings, assignments)
    task = tasks.load(source.root / "sky" / f"{source.job.task}.yaml")
    asked = tasks.parse_gpus(gpus) if gpus else tasks.accelerators(task)
    if asked is None:
        raise UsageError(f"sky/{source.job.task}.yaml asks for no GPU", "--gpus L40:4")
    gpu, count = asked
    found = _prices(gpu, count, infra, spot, offline)
    gpu = found.offers[0].gpu  # as the catalog writes it
    earlier, vocabulary, job = ([], None, source.job) if offline else _from_bucket(source.job, gpu, settings, say)
    return forecast(
        job,
        found,
        ExchangeRate.of(settings),
        nodes=int(task.get("num_nodes") or 1),
        earlier=earlier,
        vocab_size=vocabulary,
        tokens=tokens,
        tokens_per_s=tokens_per_s,
    )


def forecast(
    job: Job,
    found: PriceList,
    rate: ExchangeRate,
    *,
    nodes: int = 1,
    earlier: Sequence[Measured] = (),
    vocab_size: int | None = None,
    tokens: int | None = None,
    tokens_per_s: float | None = None,
) -> Forecast:
    """The hours and totals of ``job`` on each of the offers in ``found``, of which there is at least one."""
    gpu, count = found.offers[0].gpu, found.offers[0].gpus
    speed = throughput.expected(
        job, gpu, count * nodes, nodes=nodes, earlier=earlier, vocab_size=vocab_size, tokens_per_s=tokens_per_s
    )
    projection = throughput.projected(job, gpu, count * nodes, nodes=nodes, vocab_size=vocab_size)
    whole = job.train.tokens if tokens is None else tokens
    hours = whole / speed.tokens_per_s / 3600 if speed else None
    return Forecast(
        gpu=gpu,
        gpus=count,
        nodes=nodes,
        tokens=whole,
        speed=speed,
        prices=found,
        rate=rate,
        estimates=tuple(_estimate(offer, nodes, hours, rate) for offer in catalog.cheapest_per_cloud(found.offers)),
        projection=projection,
        cautions=tuple(_cautions(projection)),
    )


def _cautions(projection: Projection | None) -> Iterator[str]:
    """Why the trainer would refuse the job on this card."""
    if projection is None or projection.recipe.fits:
        return
    if projection.refused is not None:
        yield f"{projection.refused.message}; {projection.refused.hint}"
        return
    yield (
        f"a micro-batch of {projection.recipe.micro_batch} needs some {projection.recipe.memory_bytes / 1e9:.1f} GB of "
        "each GPU, and "
        f"{projection.gpu.name} has {projection.gpu.memory / 1e9:.1f} GB; this job would run out of memory"
    )


def _estimate(offer: Offer, nodes: int, hours: float | None, rate: ExchangeRate) -> Estimate:
    an_hour = offer.usd_per_hour * nodes
    usd = None if hours is None else hours * an_hour
    return Estimate(offer=offer, nodes=nodes, usd_per_hour=an_hour, hours=hours, usd=usd, zar=rate.rand(usd))


def _prices(gpu: str, count: int, infra: str | None, spot: bool | None, offline: bool) -> PriceList:
    """What is offered; of one's own machines, one offer at one's own price."""
    if infra is not None and quote.is_own(infra):
        own = Offer(
            cloud=infra, region="", machine="", gpu=gpu, gpus=count, spot=False, usd_per_hour=quote.self_hosted_price()
        )
        return PriceList(offers=(own,), source="your own machines", as_of=_today(), shipped=False)
    return (catalog.cached_offers if offline else catalog.refreshed_offers)(gpu, count, infra, spot)


def _today() -> date:
    return datetime.now(UTC).date()


def _from_bucket(
    job: Job, gpu: str, settings: Settings, say: Callable[[str], None]
) -> tuple[list[Measured], int | None, Job]:
    """What earlier runs reached, the size of the dataset's vocabulary, and the job with its network's sizes.

    A bucket out of reach is no reason to fail.

    This machine's own server is asked only where it runs: a plan starts none.
    """
    if settings.s3_endpoint == EMBEDDED and settings.bucket.startswith("s3:"):
        from bafogpt.storage.embedded import server

        if server.status(Path(settings.home)) is None:
            return [], None, job
    patient = replace(settings, s3_timeout_s=min(BUCKET_PATIENCE_S, settings.s3_timeout_s))
    try:
        bucket = Bucket.open(settings.bucket, patient)
        bucket.check()
    except BafoError as error:
        say(f"earlier runs are not looked at: {error.message}")
        return [], None, job
    try:
        vocabulary: int | None = manifest.load(bucket.child(job.train.data.path)).vocab_size
    except BafoError:  # no dataset yet
        vocabulary = None
    return throughput.measured(RunStore(bucket), job, gpu), vocabulary, model_shape.described(job, bucket)
