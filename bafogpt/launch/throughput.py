"""How fast a job will train on machines that have not been rented yet.

Where an earlier run of this model on this GPU has left its metrics in the bucket, they are the answer: measured. Where
none has, the answer is projected by the model of :mod:`bafogpt.train.estimates.step_time`, and carries that label.
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
from bafogpt.train.estimates.gpus import Gpu
from bafogpt.train.estimates.recipes import Recipe
from bafogpt.train.estimates.step_time import EXPECTED, PESSIMISTIC

RUNS_READ = 5
"""How many earlier runs are looked at, newest first: each is a few requests."""

Basis = Literal["given", "measured", "scaled", "projected"]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Expected training speed on one kind of machine."""

    tokens_per_s: float
    mfu: float | None
    """Model FLOPs utilisation, 0 to 1; None where a speed was given for a GPU or a model that is not known."""
    basis: Basis
    words: str
    """Where it comes from, for people: ``"projected: MFU 56 %"``, ``"measured: run zulu-1"``."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What the models of memory and time say about a job on a card: nothing of it is measured."""

    gpu: Gpu
    gpus: int
    """Over all machines."""
    nodes: int
    fp8: bool
    """Whether the job asks for products in fp8."""
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
        """What the two projections rest on, in words."""
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
class Measured:
    """What an earlier run reached: medians over its steps."""

    run: str
    gpu: str
    gpus: int
    tokens_per_s: float
    mfu: float


def projected(
    job: Job, gpu: str, gpus_in_all: int, *, nodes: int = 1, vocab_size: int | None = None
) -> Projection | None:
    """What ``job`` is projected to reach on ``gpus_in_all`` GPUs over ``nodes`` machines.

    None for a model or a card that is not known here, and for float32, which the model of the time does not have.
    """
    card, shape = gpus.of_accelerator(gpu), shape_of(job.train, vocab_size)
    if card is None or shape is None or job.train.precision == "32-true":
        return None
    train = job.train
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
    earlier: Iterable[Measured] = (),
    vocab_size: int | None = None,
    tokens_per_s: float | None = None,
) -> Throughput | None:
    """The speed of ``job`` on ``gpus_in_all`` GPUs (over all machines), from the best that is known.

    ``tokens_per_s`` is a speed that the user gives. None where neither the model nor a run says anything.
    """
    if tokens_per_s is not None:
        card, shape = gpus.of_accelerator(gpu), shape_of(job.train, vocab_size)
        mfu = None
        if card is not None and shape is not None:
            cost = flops.flops_per_token(shape, job.train.data.sequence_length, job.train.adapter)
            mfu = tokens_per_s * cost / (card.bf16 * gpus_in_all)
        return Throughput(tokens_per_s=tokens_per_s, mfu=mfu, basis="given", words="given: --tokens-per-s")
    same_gpu = [each for each in earlier if gpus.same(each.gpu, gpu)]
    for each in same_gpu:
        if each.gpus == gpus_in_all:
            return Throughput(
                tokens_per_s=each.tokens_per_s, mfu=each.mfu, basis="measured", words=f"measured: {each.run}"
            )
    for each in same_gpu:  # MFU falls with more GPUs, so the words name the run
        speed = each.tokens_per_s / each.gpus * gpus_in_all
        words = f"scaled from {each.run} on {each.gpu}:{each.gpus}"
        return Throughput(tokens_per_s=speed, mfu=each.mfu, basis="scaled", words=words)
    found = projected(job, gpu, gpus_in_all, nodes=nodes, vocab_size=vocab_size)
    if found is None:
        return None
    time = found.recipe.time
    return Throughput(
        tokens_per_s=time.tokens_per_s, mfu=time.mfu, basis="projected", words=f"projected: MFU {100 * time.mfu:.0f} %"
    )


def measured(store: RunStore, job: Job, gpu: str) -> list[Measured]:
    """What earlier runs of this model at this length on this GPU reached, newest first.

    Runs that cannot be read are left out: a price is no reason to fail. Raises nothing of the bucket's.
    """
    try:
        records = [record for name in store.names() if (record := store.find(name)) is not None]
    except BafoError:
        return []
    fitting = [each for each in records if _fits(each, job, gpu)]
    fitting.sort(key=lambda each: each.updated, reverse=True)
    found = (_measured(store, record) for record in fitting[:RUNS_READ])
    return [each for each in found if each is not None]


def gpus_of(record: RunRecord) -> tuple[str, int]:
    """The GPU that a run's last attempt had, as SkyPilot calls it, and how many over all nodes; ``("", 0)`` for none.

    The launch said so; else the driver did, whose name for it is looked up among those that are known.
    """
    last = record.machines[-1] if record.machines else {}
    nodes = int(last.get("nodes") or 1)
    if record.gpus:
        gpu, _, count = record.gpus.partition(":")
        return gpu, int(count or 1) * nodes
    card = gpus.of_device(str(last.get("gpu") or ""))
    return (card.accelerators[0], int(last.get("gpus") or 1) * nodes) if card else ("", 0)


def _fits(record: RunRecord, job: Job, gpu: str) -> bool:
    """Whether what a run reached says something about ``job`` on ``gpu``."""
    if not gpus.same(gpus_of(record)[0], gpu):
        return False
    train, mine = record.job.get("train") or {}, job.train
    model, data = train.get("model") or {}, train.get("data") or {}
    return (
        _network(model) == _network(schema.to_dict(mine.model))
        and data.get("sequence_length") == mine.data.sequence_length
        and train.get("precision") == mine.precision
        and train.get("activation_checkpointing") == mine.activation_checkpointing
        and _adapter(train.get("adapter")) == _adapter(schema.to_dict(mine.adapter) if mine.adapter else None)
        and train.get("float8", "none") == mine.float8  # records of older runs do not have the key
    )


def _network(model: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a ``train.model`` section decides about speed: its sizes, or the folder that has them."""
    folder = None if model.get("name") else model.get("checkpoint")
    return model.get("name") or folder or NEW_NETWORK, _sizes(model.get("overrides"))


def _adapter(values: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    """What of an adapter decides about speed; None where the whole model learns."""
    return None if values is None else (values.get("base"), values.get("r"), sorted(values.get("targets") or ()))


def _sizes(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (overrides or {}).items() if key in ModelShape.__dataclass_fields__}


def _measured(store: RunStore, record: RunRecord) -> Measured | None:
    """The medians of a run that has metrics, as the report of it shows them."""
    gpu, count = gpus_of(record)
    try:
        lines = runs.curve(store.metrics(record.name))
    except BafoError:
        return None
    summary = Summary(record=record, lines=lines, events=(), in_bucket=())
    if not summary.tokens_per_s or not summary.mfu:
        return None
    return Measured(run=record.name, gpu=gpu, gpus=count, tokens_per_s=summary.tokens_per_s, mfu=summary.mfu)
