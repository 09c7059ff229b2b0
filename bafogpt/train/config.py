"""The ``train:`` section of a job file, as dataclasses. No torch here: the launcher checks jobs with these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from bafogpt.core.errors import ConfigError
from bafogpt.model.adapter import AdapterConfig

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Float8 = Literal["none", "tensorwise", "rowwise"]
Recompute = Literal["full", "selective", "none"]
When = Literal["auto", "always", "never"]
Sharding = Literal["step", "pass", "full"]
NEW_NETWORK = "Gemma-2-2b"
"""The network of a job that names none and starts from nothing."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens are read."""

    path: str
    """The dataset: a folder of the bucket (``data/zulu``) with a ``manifest.json``."""
    sequence_length: int = 2048
    """Tokens a sample, T."""
    prefetch: int = 3
    """Blocks (8 MiB) fetched ahead of the one that is read; 0 fetches each when it is needed."""
    cache_gb: float = 4.0
    """Local disk for verified blocks of the stream; 0 keeps only what is being read, in memory."""
    bos: bool | None = None
    """Whether every sample begins with the tokenizer's ``<bos>``; null does as the dataset's manifest says."""
    separate_documents: bool = False
    """Whether the documents that share a sample are hidden from each other; they see each other otherwise."""

    def __post_init__(self) -> None:
        _require(self.sequence_length >= 2, f"sequence_length is {self.sequence_length}; a sample needs 2 tokens")
        _require(self.prefetch >= 0, f"prefetch is {self.prefetch}; at least 0")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model learns.

    ``name``, ``overrides`` and ``tie_embeddings`` are for a new network. One that starts from ``checkpoint`` is what
    the folder there says; a value that contradicts it is refused. A new network has as many rows as the dataset's
    tokenizer has ids, padded to a multiple of 64.
    """

    name: str | None = None
    """A litgpt configuration name, or a name in :mod:`bafogpt.model.formats.families`. None is the network of
    ``checkpoint``, and Gemma-2-2b for a new one."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of litgpt's ``Config`` to change, for a model of another size: ``n_layer``, ``n_embd``, …"""
    checkpoint: str | None = None
    """Where in the bucket the first weights come from: a model folder (``models/NAME``) or a run, for its newest
    checkpoint (``runs/NAME``). None starts from random ones."""
    tie_embeddings: bool | None = None
    """Whether the output head is the embedding matrix. None is as in ``checkpoint``, and true for a new network. False
    gives a tied model a head of its own, which begins as a copy of the embedding."""

    @property
    def network(self) -> str:
        """The name of a new network."""
        return self.name or NEW_NETWORK

    @property
    def tied(self) -> bool:
        """Whether a new network's output head is the embedding matrix."""
        return self.tie_embeddings is not False


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many tokens make one optimizer step."""

    tokens: int = 262_144
    """Tokens a step, over all processes."""
    micro_batch_size: int = 4
    """Samples a process pushes through the model at once; the rest of the step is gradient accumulation. 0 is found:
    the most that :mod:`bafogpt.train.estimates.memory` expects to fit, and on a GPU a trial of it."""

    def __post_init__(self) -> None:
        _require(
            self.micro_batch_size >= 0, f"micro_batch_size is {self.micro_batch_size}; at least 1, or 0 for what fits"
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Norms and biases are not decayed."""

    name: Literal["adamw", "adamw8bit-paged"] = "adamw"
    """``adamw8bit-paged`` keeps moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), those of tensors of less
    than 4,096 numbers in 32; on a GPU large ones move to the host where its memory is full. For one process."""
    learning_rate: float = 2e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    new_rows_factor: float = 1.0
    """How much faster the rows from ``first_new_row`` on learn, in embedding and output head: their learning rate is
    ``learning_rate`` times this. New pieces of a vocabulary start from a mean of others and have far to go."""
    first_new_row: int = 0
    """Where the rows of a base model's own vocabulary end. 0 is found: the lineage in the model folder has it."""

    def __post_init__(self) -> None:
        _require(self.new_rows_factor > 0, f"new_rows_factor is {self.new_rows_factor}; must be above 0")
        _require(self.first_new_row >= 0, f"first_new_row is {self.first_new_row}; 0 or more")
        _require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; must be above 0")
        _require(self.clip_norm > 0, f"clip_norm is {self.clip_norm}; must be above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then down to ``final_ratio`` of the peak at the last step."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """``cosine`` falls all the way. ``wsd`` (warm-up, stable, decay) stays at the peak and falls in a straight line
    over the last ``decay_share``: a run can then be prolonged from any checkpoint before the fall."""
    warmup_steps: int = 100
    final_ratio: float = 0.1
    decay_share: float = 0.2
    """Of all steps, for ``wsd``."""
    restart_at: int = 0
    """The step from which warm-up and decay begin anew: for a run that goes on, with more ``tokens``, from where it had
    ended. A model that has cooled down needs a warm-up to learn again (Ibrahim et al. 2024, arXiv:2403.08763)."""

    def __post_init__(self) -> None:
        _require(0 <= self.final_ratio <= 1, f"final_ratio is {self.final_ratio}; between 0 and 1")
        _require(0 < self.decay_share <= 1, f"decay_share is {self.decay_share}; above 0, at most 1")
        _require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; 0 or more")
        _require(self.restart_at >= 0, f"restart_at is {self.restart_at}; 0 or more")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run stops by itself because its loss went wrong; a loss that is not finite always stops it."""

    spike_ratio: float | None = 2.0
    """Stop when a loss is more than this times the running mean of those before. Stages of a curriculum differ by less.
    None never stops for it."""
    after_steps: int = 50
    """Steps before the running mean is trusted."""

    def __post_init__(self) -> None:
        ratio = self.spike_ratio
        _require(ratio is None or ratio > 1, f"spike_ratio is {ratio}; must be above 1")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on text that is never trained on, for each stage and each language, also in bits per byte."""

    every: int = 100
    """Steps between validations; also done after the last step. 0 is never."""
    samples: int | None = 64
    """Samples read each time, always the same, shared evenly among the stages; null is all there are."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"every is {self.every}; 0 or more")
        _require(self.samples is None or self.samples >= 1, f"samples is {self.samples}; at least 1, or null for all")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved and how many copies stay."""

    every: int = 100
    """Steps between checkpoints; one is also saved at the end and on SIGTERM."""
    keep_last: int = 2
    """Complete checkpoints kept in the bucket."""
    keep_every: int | None = None
    """Steps that are multiples of this stay as well."""
    keep_best: bool = True
    """Whether the one with the lowest validation loss stays as well; only steps that are validated have one."""
    max_pending: int = 2
    """Checkpoints that may wait on local disk for their upload."""
    on_backlog: Literal["wait", "skip"] = "wait"
    """What the trainer does at a checkpoint while ``max_pending`` wait: pause, or leave this one out. The one at the
    end and the one on SIGTERM always wait."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"every is {self.every}; at least 1")
        _require(self.keep_last >= 1, f"keep_last is {self.keep_last}; at least 1")
        _require(self.max_pending >= 1, f"max_pending is {self.max_pending}; at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the trainer."""

    tokens: int
    """Tokens to train on in all; rounded down to whole steps."""
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig | None = None
    """Where it is there, the model is frozen, and what is trained, saved and sent is the adapter: fine-tuning."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    precision: Precision = "bf16-mixed"
    """What is computed in. ``bf16-mixed`` keeps float32 weights and moments and computes in bf16. ``bf16-true`` keeps
    bf16 ones, at half the memory: an update below 1/256 of a weight is lost in them, so a small rate stalls."""
    float8: Float8 = "none"
    """Whether the blocks' linear layers multiply in fp8, and how inputs are scaled: ``tensorwise`` by one number a
    tensor, ``rowwise`` by one a row or column. Needs an Ada, Hopper or Blackwell GPU; a CPU emulates it. The embedding,
    the output head and checkpoints stay as they are, so a run may be resumed with another value."""
    activation_checkpointing: Recompute = "full"
    """What the backward pass computes again instead of keeping it: ``full`` each block, ``selective`` all of a block
    but the results of matrix products and attention, ``none`` nothing."""
    sharding: Literal["auto", "step", "pass", "full"] = "auto"
    """How long a process keeps what it gathers, where there are several. ``step``: weights for a whole step, gradients
    whole until its end. ``pass``: weights for each forward and each backward pass, which is less memory and more
    traffic. ``full``: gradients are exchanged after each micro-batch, too, and only its own part of them stays.
    ``auto`` is the first that :mod:`bafogpt.train.estimates.memory` expects to fit."""
    compile: When = "auto"
    """Whether each block is compiled; ``auto`` on a GPU. The first step takes a minute longer."""
    deterministic: bool = False
    """Only kernels that add in a fixed order: on a GPU bit-equal runs, and slower ones. On CPU they always are."""
    seed: int = 1
    log_every: int = 1
    """Steps between metrics lines."""
    profile: int = 0
    """Steps to trace with torch's profiler, after the first three of an attempt; the trace, for Chrome's viewer, and a
    table of operators come to ``profile/`` of the run. They slow these steps down."""

    def __post_init__(self) -> None:
        _require(self.profile >= 0, f"profile is {self.profile}; 0 or more steps")
        per_micro = self.data.sequence_length * max(1, self.batch.micro_batch_size)
        _require(
            self.batch.tokens % per_micro == 0,
            f"batch.tokens is {self.batch.tokens}, not a multiple of "
            f"{per_micro} (data.sequence_length × batch.micro_batch_size)",
        )
        _require(self.steps >= 1, f"tokens is {self.tokens}, less than one batch of {self.batch.tokens}")
        if self.float8 != "none":
            length = self.data.sequence_length
            _require(self.adapter is None, f"float8 is {self.float8}; with an adapter it must be none")
            _require(length % 16 == 0, f"float8 needs a sequence_length that is a multiple of 16, not {length}")

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.tokens // self.batch.tokens

    @property
    def batch_samples(self) -> int:
        """Samples a step, over all processes."""
        return self.batch.tokens // self.data.sequence_length


def check_processes(config: TrainConfig, processes: int) -> None:
    """Raise :class:`ConfigError` for a job that so many processes cannot train.

    A step's samples divide evenly among them. 8-bit moments are not sharded: their blocks are no rows of a tensor. In
    ``bf16-mixed`` FSDP casts what it shards, and the frozen base of an adapter is whole on each process.
    """
    if config.adapter is not None and processes > 1 and config.precision == "bf16-mixed":
        raise ConfigError(
            f"{processes} processes do not train an adapter in bf16-mixed",
            "--set train.precision=bf16-true, or one process: supervisor.processes=1",
        )
    if config.optimizer.name == "adamw8bit-paged" and processes > 1:
        raise ConfigError(
            f"adamw8bit-paged is for one process, here are {processes}",
            "--set train.optimizer.name=adamw, or supervisor.processes=1",
        )
    share = max(1, config.batch.micro_batch_size) * processes
    if config.batch_samples < processes:
        raise ConfigError(
            f"a step has {config.batch_samples} samples, fewer than the {processes} processes",
            f"--set train.batch.tokens={share * config.data.sequence_length}",
        )
    if config.batch_samples % share:
        raise ConfigError(
            f"a batch of {config.batch_samples} samples does not divide among {processes} processes "
            f"with {max(1, config.batch.micro_batch_size)} a micro-batch",
            f"--set train.batch.tokens={-(-config.batch_samples // share) * share * config.data.sequence_length}",
        )


def rank_samples(first: int, last: int, batch_samples: int, rank: int, processes: int) -> Iterator[int]:
    """The samples that one process reads from position ``first`` up to ``last``, in order.

    A step is samples [first, first + batch_samples) whatever the number of processes, and each process reads one
    contiguous part of them. The position of a run is therefore one integer, and a resume may use any other number.
    """
    share = batch_samples // processes
    for start in range(first, last, batch_samples):
        yield from range(start + rank * share, start + (rank + 1) * share)
