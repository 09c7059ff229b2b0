"""``bafogpt cloud plan``: every offer of a job's GPUs, with the job's hours and cost on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
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
from bafogpt.launch.throughput import MeasuredThroughput, Projection, Throughput
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest

BUCKET_TIMEOUT_S = 5.0
"""How long an unreachable bucket may delay a plan, which works without it."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One offer, and the job's hours and cost on it; None for an unknown speed."""

    offer: Offer
    nodes: int
    usd_per_hour: float
    """For all machines."""
    hours: float | None
    usd: float | None
    zar: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.offer), **{key: value for key, value in asdict(self).items() if key != "offer"}}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Everything that ``cloud plan`` shows, cheapest offer first."""

    gpu: str
    gpus: int
    """In each machine."""
    nodes: int
    tokens: int
    speed: Throughput | None
    prices: PriceList
    rate: ExchangeRate
    estimates: tuple[Estimate, ...]
    projection: Projection | None
    """Also where ``speed`` is measured or given."""

    @property
    def warning(self) -> str | None:
        """Why the trainer would refuse the job on this card."""
        projection = self.projection
        if projection is None or projection.recipe.fits:
            return None
        if projection.refused is not None:
            return f"{projection.refused.message}; {projection.refused.hint}"
        recipe, gpu = projection.recipe, projection.gpu
        return (
            f"a micro-batch of {recipe.micro_batch} needs about {recipe.memory_bytes / 1e9:.1f} GB of each GPU, and "
            f"{gpu.name} has {gpu.memory / 1e9:.1f} GB; this job would run out of memory"
        )

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
            "warning": self.warning,
            "offers": [each.to_dict() for each in self.estimates],
        }


def of_job(
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
    log: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """The forecast of a job. ``infra`` None is every cloud, whatever the settings are.

    Raises :class:`~bafogpt.core.errors.ConfigError`, :class:`UsageError`, and
    :class:`~bafogpt.core.errors.NotFoundError` for a GPU that no cloud offers.
    """
    if tokens_per_s is not None and not tokens_per_s > 0:
        raise UsageError(f"--tokens-per-s {tokens_per_s:g}: must be above 0", "--tokens-per-s 1543")
    source = resolve.find(job_name, settings, assignments)
    task = tasks.load(source.root / "sky" / f"{source.job.task}.yaml")
    wanted = tasks.parse_gpus(gpus) if gpus else tasks.accelerators(task)
    if wanted is None:
        raise UsageError(f"sky/{source.job.task}.yaml has no GPU", "--gpus L40:4")
    prices = _prices(*wanted, infra, spot, offline)
    gpu, count, nodes = prices.offers[0].gpu, wanted[1], int(task.get("num_nodes") or 1)  # the catalog's spelling
    earlier, vocab_size, job = ([], None, source.job) if offline else _from_bucket(source.job, gpu, settings, log)
    return _forecast(
        source.job.train.tokens if tokens is None else tokens,
        prices,
        nodes,
        throughput.expected(
            job, gpu, count * nodes, nodes=nodes, earlier=earlier, vocab_size=vocab_size, tokens_per_s=tokens_per_s
        ),
        throughput.projected(job, gpu, count * nodes, nodes=nodes, vocab_size=vocab_size),
        ExchangeRate.of(settings),
    )


def _forecast(
    tokens: int,
    prices: PriceList,
    nodes: int,
    speed: Throughput | None,
    projection: Projection | None,
    rate: ExchangeRate,
) -> Forecast:
    hours = tokens / speed.tokens_per_s / 3600 if speed else None
    offers = catalog.cheapest_per_cloud(prices.offers)
    return Forecast(
        gpu=offers[0].gpu,
        gpus=offers[0].gpus,
        nodes=nodes,
        tokens=tokens,
        speed=speed,
        prices=prices,
        rate=rate,
        estimates=tuple(_estimate(offer, nodes, hours, rate) for offer in offers),
        projection=projection,
    )


def _estimate(offer: Offer, nodes: int, hours: float | None, rate: ExchangeRate) -> Estimate:
    usd_per_hour = offer.usd_per_hour * nodes
    usd = None if hours is None else hours * usd_per_hour
    return Estimate(offer=offer, nodes=nodes, usd_per_hour=usd_per_hour, hours=hours, usd=usd, zar=rate.rand(usd))


def _prices(gpu: str, count: int, infra: str | None, spot: bool | None, offline: bool) -> PriceList:
    """The clouds' offers; for self-hosted machines one offer at their own price."""
    if infra is not None and quote.is_self_hosted(infra):
        price = quote.self_hosted_price()
        own = Offer(cloud=infra, region="", machine="", gpu=gpu, gpus=count, spot=False, usd_per_hour=price)
        return PriceList(offers=(own,), source="your own machines", as_of=datetime.now(UTC).date(), shipped=False)
    return (catalog.cached_offers if offline else catalog.refreshed_offers)(gpu, count, infra, spot)


def _from_bucket(
    job: Job, gpu: str, settings: Settings, log: Callable[[str], None]
) -> tuple[list[MeasuredThroughput], int | None, Job]:
    """Speeds of earlier runs, the vocabulary size of the dataset, and the job with the sizes of its network.

    Never fails for an unreachable bucket; the embedded server is used only if it is running.
    """
    if settings.s3_endpoint == EMBEDDED and settings.bucket.startswith("s3:"):
        from bafogpt.storage.embedded import server

        if server.status(Path(settings.home)) is None:
            return [], None, job
    try:
        bucket = Bucket.open(
            settings.bucket, replace(settings, s3_timeout_s=min(BUCKET_TIMEOUT_S, settings.s3_timeout_s))
        )
        bucket.check()
    except BafoError as error:
        log(f"earlier runs are not used: {error.message}")
        return [], None, job
    try:
        vocab_size: int | None = manifest.load(bucket.child(job.train.data.path)).vocab_size
    except BafoError:  # no dataset yet
        vocab_size = None
    return throughput.measured(RunStore(bucket), job, gpu), vocab_size, model_shape.with_network_sizes(job, bucket)
