"""How fast a job will train on machines that have not been rented yet.

Measured, where an earlier run of this model on this GPU has its metrics in the bucket; otherwise projected by
:mod:`bafogpt.train.estimates.step_time`, and labelled so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bafogpt.core import schema
from bafogpt.core.errors import BafoError, ConfigError
from bafogpt.jobs.job import Job
from bafogpt.jobs.model_shape import ModelShape, shape_of
from bafogpt.reports.summary import Summary
from bafogpt.runs import store as runs
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.train.config import NEW_NETWORK
from bafogpt.train.estimates import flops, gpus, recipes
from bafogpt.train.estimates.gpus import GpuSpec
from bafogpt.train.estimates.recipes import Recipe
from bafogpt.train.estimates.step_time import EXPECTED, PESSIMISTIC

RUNS_READ = 5
"""How many earlier runs are read, newest first; each takes a few requests."""

Basis = Literal["given", "measured", "scaled", "projected"]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Expected training speed on one kind of machine."""

    tokens_per_s: float
    mfu: float | None
    """Model FLOPs utilisation, 0 to 1; None for a given speed of an unknown GPU or model."""
    basis: Basis
    description: str
    """The source: ``"projected: MFU 56 %"``, ``"measured: zulu-1"``."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Memory and time of a job on a card by the models of :mod:`bafogpt.train.estimates`; nothing is measured."""

    gpu: GpuSpec
    gpus: int
    """Over all machines."""
    nodes: int
    fp8: bool
    """Whether the job computes products in fp8."""
    refused: ConfigError | None
    """Why the trainer would refuse the job on so many of these cards, whatever their memory."""
    recipe: Recipe
    """The job as it is written."""
    pessimistic: Recipe
    """The same under :data:`~bafogpt.train.estimates.step_time.PESSIMISTIC`."""
    recommended: Recipe | None
    """The fastest that fits; None where nothing does."""

    @property
    def assumptions(self) -> dict[str, str]:
        """The assumptions of both projections, as text."""
        return {
            each.name: each.describe(self.gpu, self.gpus, self.nodes, fp8=self.fp8) for each in (EXPECTED, PESSIMISTIC)
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "card": asdict(self.gpu),
            "assumptions": self.assumptions,
            "expected": self.recipe.to_dict(),
            "pessimistic": self.pessimistic.to_dict(),
            "recommended": self.recommended.to_dict() if self.recommended else None,
        }


@dataclass(frozen=True, kw_only=True)
class MeasuredThroughput:
    """An earlier run's speed: medians over its steps."""

    run: str
    gpu: str
    gpus: int
    tokens_per_s: float
    mfu: float


def projected(
    job: Job, gpu: str, gpus_in_all: int, *, nodes: int = 1, vocab_size: int | None = None
) -> Projection | None:
    """The projection of ``job`` on ``gpus_in_all`` GPUs over ``nodes`` machines.

    None for an unknown model or card, and for float32, which the model of time does not cover.
    """
    train, card, shape = job.train, gpus.of_accelerator(gpu), shape_of(job.train, vocab_size)
    if card is None or shape is None or train.precision == "32-true":
        return None
    return Projection(
        gpu=card,
        gpus=gpus_in_all,
        nodes=nodes,
        fp8=train.float8 != "none",
        refused=recipes.refusal(train, card, gpus_in_all),
        recipe=recipes.as_written(shape, train, card, processes=gpus_in_all, nodes=nodes),
        pessimistic=recipes.as_written(shape, train, card, processes=gpus_in_all, nodes=nodes, assumptions=PESSIMISTIC),
        recommended=recipes.fastest(shape, train, card, processes=gpus_in_all, nodes=nodes),
    )


def expected(
    job: Job,
    gpu: str,
    gpus_in_all: int,
    *,
    nodes: int = 1,
    earlier: Iterable[MeasuredThroughput] = (),
    vocab_size: int | None = None,
    tokens_per_s: float | None = None,
) -> Throughput | None:
    """The speed of ``job`` on ``gpus_in_all`` GPUs (over all machines), from the best source.

    ``tokens_per_s`` is a speed that the user gives. None where neither the models nor an earlier run have a figure.
    """
    if tokens_per_s is not None:
        mfu = _mfu(job, gpu, gpus_in_all, vocab_size, tokens_per_s)
        return Throughput(tokens_per_s=tokens_per_s, mfu=mfu, basis="given", description="given: --tokens-per-s")
    same_gpu = sorted((each for each in earlier if gpus.same(each.gpu, gpu)), key=lambda each: each.gpus != gpus_in_all)
    if same_gpu:
        run, exact = same_gpu[0], same_gpu[0].gpus == gpus_in_all
        return Throughput(
            tokens_per_s=run.tokens_per_s / run.gpus * gpus_in_all,
            mfu=run.mfu,  # it falls with more GPUs, so the description has the run's number
            basis="measured" if exact else "scaled",
            description=f"measured: {run.run}" if exact else f"scaled from {run.run} on {run.gpu}:{run.gpus}",
        )
    projection = projected(job, gpu, gpus_in_all, nodes=nodes, vocab_size=vocab_size)
    if projection is None:
        return None
    time = projection.recipe.time
    description = f"projected: MFU {100 * time.mfu:.0f} %"
    return Throughput(tokens_per_s=time.tokens_per_s, mfu=time.mfu, basis="projected", description=description)


def _mfu(job: Job, gpu: str, gpus_in_all: int, vocab_size: int | None, tokens_per_s: float) -> float | None:
    card, shape = gpus.of_accelerator(gpu), shape_of(job.train, vocab_size)
    if card is None or shape is None:
        return None
    cost = flops.flops_per_token(shape, job.train.data.sequence_length, job.train.adapter)
    return tokens_per_s * cost / (card.bf16 * gpus_in_all)


def measured(store: RunStore, job: Job, gpu: str) -> list[MeasuredThroughput]:
    """The speeds of earlier runs of this model at this length on this GPU, newest first.

    Runs that cannot be read are left out, and no error of the bucket is raised: a plan works without them.
    """
    try:
        records = [record for name in store.names() if (record := store.find(name)) is not None]
    except BafoError:
        return []
    comparable = [each for each in records if _is_comparable(each, job, gpu)]
    comparable.sort(key=lambda each: each.updated, reverse=True)
    found = (_measured(store, record) for record in comparable[:RUNS_READ])
    return [each for each in found if each is not None]


def _gpus_of(record: RunRecord) -> tuple[str, int]:
    """SkyPilot's name of the GPU of a run's last attempt, and their number over all nodes; ``("", 0)`` for none.

    By the launch where it named one, else by the driver's name for it.
    """
    last = record.machines[-1] if record.machines else {}
    nodes = int(last.get("nodes") or 1)
    if record.gpus:
        gpu, _, count = record.gpus.partition(":")
        return gpu, int(count or 1) * nodes
    card = gpus.of_device(str(last.get("gpu") or ""))
    return (card.accelerators[0], int(last.get("gpus") or 1) * nodes) if card else ("", 0)


def _is_comparable(record: RunRecord, job: Job, gpu: str) -> bool:
    """Whether a run's speed applies to ``job`` on ``gpu``."""
    recorded = record.job.get("train") or {}
    return (
        bool(recorded)
        and gpus.same(_gpus_of(record)[0], gpu)
        and (_speed_keys(recorded) == _speed_keys(schema.to_dict(job.train)))
    )


def _speed_keys(train: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a ``train`` section that decide about speed."""
    model, adapter = train.get("model") or {}, train.get("adapter")
    network = model.get("name") or model.get("checkpoint") or NEW_NETWORK
    overrides = (model.get("overrides") or {}).items()
    return (
        network,
        {key: value for key, value in overrides if key in ModelShape.__dataclass_fields__},
        (train.get("data") or {}).get("sequence_length"),
        train.get("precision"),
        train.get("activation_checkpointing"),
        train.get("float8", "none"),
        adapter and (adapter.get("base"), adapter.get("r"), sorted(adapter.get("targets") or ())),
    )


def _measured(store: RunStore, record: RunRecord) -> MeasuredThroughput | None:
    """The medians of a run that has metrics, as in its report."""
    gpu, count = _gpus_of(record)
    try:
        lines = runs.curve(store.metrics(record.name))
    except BafoError:
        return None
    summary = Summary(record=record, lines=lines, events=(), in_bucket=())
    if not summary.tokens_per_s or not summary.mfu:
        return None
    return MeasuredThroughput(run=record.name, gpu=gpu, gpus=count, tokens_per_s=summary.tokens_per_s, mfu=summary.mfu)
