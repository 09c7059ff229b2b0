"""How fast a job will train on machines that have not been rented yet.

tokens/s = MFU x peak bf16 operations/s of all GPUs ÷ operations a token costs. The MFU is measured where an earlier
run of this model on this GPU has left its metrics in the bucket, and assumed, with that label, where none has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bafogpt.cloud import runs
from bafogpt.cloud.job import Job
from bafogpt.cloud.report.summary import Summary
from bafogpt.cloud.runs import RunRecord, RunStore
from bafogpt.core.errors import BafoError
from bafogpt.train import flops
from bafogpt.train.config import TrainConfig

ASSUMED_MFU = 0.30
"""A cautious guess: PaLM's table 3 has 21 % (GPT-3), 30 % (MT-NLG), 33 % (Gopher) and 46 % (PaLM itself)."""
GEMMA_VOCABULARY = 256_000
"""Tokens of Gemma's own tokenizer; a job's dataset may have more, and its manifest says so."""
RUNS_READ = 5
"""How many earlier runs are looked at, newest first: each is a few requests."""

Basis = Literal["given", "measured", "scaled", "assumed"]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that decide what a token costs; names and meanings are litgpt's."""

    n_layer: int
    n_embd: int
    n_head: int
    n_query_groups: int
    head_size: int
    intermediate_size: int
    padded_vocab_size: int = GEMMA_VOCABULARY
    mlp_class_name: str = "GemmaMLP"
    sliding_window_size: int | None = 4096

    @property
    def sliding_window_indices(self) -> list[int]:
        """Every other layer, as in Gemma-2."""
        return [1 - layer % 2 for layer in range(self.n_layer)]


KNOWN = {
    "Gemma-2-2b": ModelShape(
        n_layer=26, n_embd=2304, n_head=8, n_query_groups=4, head_size=256, intermediate_size=9216
    ),
    "Gemma-2-9b": ModelShape(
        n_layer=42, n_embd=3584, n_head=16, n_query_groups=8, head_size=256, intermediate_size=14336
    ),
    "Gemma-2-27b": ModelShape(
        n_layer=46, n_embd=4608, n_head=32, n_query_groups=16, head_size=128, intermediate_size=36864
    ),
}
"""Gemma-2's sizes, so that pricing needs neither torch nor litgpt; a test holds them against litgpt's."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Expected training speed on one kind of machine."""

    tokens_per_s: float
    mfu: float | None
    """Model FLOPs utilisation, 0 to 1; None where a speed was given for a GPU or a model that is not known."""
    basis: Basis
    words: str
    """Where it comes from, for people: ``"assumed: MFU 30 %"``, ``"measured: run zulu-1"``."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an earlier run reached: medians over its steps."""

    run: str
    gpu: str
    gpus: int
    tokens_per_s: float
    mfu: float


def shape_of(config: TrainConfig, vocab_size: int | None = None) -> ModelShape | None:
    """The model's sizes with the job's overrides; None for a model that is not known here."""
    known = KNOWN.get(config.model.name)
    if known is None:
        return None
    sizes = set(ModelShape.__dataclass_fields__)
    changed = {key: value for key, value in config.model.overrides.items() if key in sizes}
    vocabulary = vocab_size or config.model.overrides.get("vocab_size") or GEMMA_VOCABULARY
    return replace(known, padded_vocab_size=-(-int(vocabulary) // 64) * 64, **changed)


def expected(
    job: Job,
    gpu: str,
    gpus: int,
    *,
    earlier: Iterable[Measured] = (),
    vocab_size: int | None = None,
    tokens_per_s: float | None = None,
) -> Speed | None:
    """The speed of ``job`` on ``gpus`` GPUs (over all machines), from the best that is known.

    ``tokens_per_s`` is a speed that somebody gives. None where neither the model nor a run says anything.
    """
    peak, shape = flops.of_accelerator(gpu), shape_of(job.train, vocab_size)
    cost = flops.flops_per_token(shape, job.train.data.sequence_length) if shape else None
    mfu_of_one = None if peak is None or cost is None else cost / (peak * gpus)
    if tokens_per_s is not None:
        mfu = None if mfu_of_one is None else tokens_per_s * mfu_of_one
        return Speed(tokens_per_s=tokens_per_s, mfu=mfu, basis="given", words="given: --tokens-per-s")
    same_gpu = [each for each in earlier if each.gpu.lower() == gpu.lower()]
    for each in same_gpu:
        if each.gpus == gpus:
            return Speed(tokens_per_s=each.tokens_per_s, mfu=each.mfu, basis="measured", words=f"measured: {each.run}")
    for each in same_gpu:  # MFU falls with more GPUs, so this is a guess, and says so
        speed = each.tokens_per_s / each.gpus * gpus
        words = f"scaled from {each.run} on {each.gpu}:{each.gpus}"
        return Speed(tokens_per_s=speed, mfu=each.mfu, basis="scaled", words=words)
    if mfu_of_one is None:
        return None
    return Speed(
        tokens_per_s=ASSUMED_MFU / mfu_of_one,
        mfu=ASSUMED_MFU,
        basis="assumed",
        words=f"assumed: MFU {100 * ASSUMED_MFU:.0f} %",
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
    last = record.places[-1] if record.places else {}
    nodes = int(last.get("nodes") or 1)
    if record.gpus:
        gpu, _, count = record.gpus.partition(":")
        return gpu, int(count or 1) * nodes
    name = str(last.get("gpu") or "").upper().replace(" ", "")
    known = next((key for key in flops.PEAK_FLOPS if key in name), "")
    return (known, int(last.get("gpus") or 1) * nodes) if known else ("", 0)


def _fits(record: RunRecord, job: Job, gpu: str) -> bool:
    """Whether what a run reached says something about ``job`` on ``gpu``."""
    if gpus_of(record)[0].lower() != gpu.lower():
        return False
    train, mine = record.job.get("train") or {}, job.train
    model, data = train.get("model") or {}, train.get("data") or {}
    return (
        (model.get("name"), _sizes(model.get("overrides"))) == (mine.model.name, _sizes(mine.model.overrides))
        and data.get("sequence_length") == mine.data.sequence_length
        and train.get("precision") == mine.precision
        and train.get("activation_checkpointing") == mine.activation_checkpointing
        and train.get("float8", "none") == mine.float8  # records of older runs do not have the key
    )


def _sizes(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (overrides or {}).items() if key in ModelShape.__dataclass_fields__}


def _measured(store: RunStore, record: RunRecord) -> Measured | None:
    """The medians of a run that has metrics, as the report of it shows them."""
    gpu, gpus = gpus_of(record)
    try:
        lines = runs.curve(store.metrics(record.name))
    except BafoError:
        return None
    summary = Summary(record=record, lines=lines, events=(), in_bucket=())
    if not summary.tokens_per_s or not summary.mfu:
        return None
    return Measured(run=record.name, gpu=gpu, gpus=gpus, tokens_per_s=summary.tokens_per_s, mfu=summary.mfu)
