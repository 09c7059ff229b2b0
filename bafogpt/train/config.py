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
"""The new network of a job that names none."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _at_least(config: Any, **minimums: int) -> None:
    for name, minimum in minimums.items():
        value = getattr(config, name)
        _require(value is None or value >= minimum, f"{name} is {value}; at least {minimum}")


def _above(config: Any, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value > minimum, f"{name} is {value}; must be above {minimum}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The tokens to read."""

    path: str
    """The dataset: a folder of the bucket (``data/zulu``) with a ``manifest.json``."""
    sequence_length: int = 2048
    """Tokens a sample, T."""
    prefetch: int = 3
    """Blocks (8 MiB) to fetch ahead; 0 fetches each when it is needed."""
    cache_gb: float = 4.0
    """Local disk for verified blocks of the stream; 0 keeps the current block in memory only."""
    bos: bool | None = None
    """Whether every sample begins with the tokenizer's ``<bos>``; null follows the dataset's manifest."""
    separate_documents: bool = False
    """Whether attention is limited to the document, where several share a sample."""

    def __post_init__(self) -> None:
        _at_least(self, sequence_length=2, prefetch=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to train.

    ``name``, ``overrides`` and ``tie_embeddings`` define a new network, with as many rows as the dataset's tokenizer
    has ids, padded to a multiple of 64. With ``checkpoint`` the network is the one there, and values that contradict it
    are refused.
    """

    name: str | None = None
    """A litgpt configuration name, or a name in :mod:`bafogpt.model.formats.families`. None is the network of
    ``checkpoint``, and Gemma-2-2b for a new one."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of litgpt's ``Config`` to change: ``n_layer``, ``n_embd``, …"""
    checkpoint: str | None = None
    """The first weights, in the bucket: a model folder (``models/NAME``), or a run's newest checkpoint (``runs/NAME``).
    None starts from random ones."""
    tie_embeddings: bool | None = None
    """Whether the output head is the embedding matrix. None follows ``checkpoint``; true for a new network. False
    gives a tied model a head of its own, initially a copy of the embedding."""

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
    """The batch of an optimizer step."""

    tokens: int = 262_144
    """Tokens a step, over all processes."""
    micro_batch_size: int = 4
    """Samples a process pushes through the model at once; the rest is gradient accumulation. 0 selects the largest that
    :mod:`bafogpt.train.estimates.memory` expects to fit, and on a GPU tries it."""

    def __post_init__(self) -> None:
        _at_least(self, micro_batch_size=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Norms and biases are not decayed."""

    name: Literal["adamw", "adamw8bit-paged"] = "adamw"
    """``adamw8bit-paged`` keeps moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), except for tensors of less
    than 4,096 numbers, and pages them to the host where a GPU's memory is full. For one process."""
    learning_rate: float = 2e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    new_rows_factor: float = 1.0
    """Factor on the learning rate of the rows from ``first_new_row`` on, in embedding and output head. New tokens start
    from a mean of others and have far to go."""
    first_new_row: int = 0
    """End of the base model's own vocabulary. 0 reads it from the lineage in the model folder."""

    def __post_init__(self) -> None:
        _at_least(self, first_new_row=0)
        _above(self, 0, "new_rows_factor", "learning_rate", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then down to ``final_ratio`` of the peak at the last step."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """``cosine`` decays all the way. ``wsd`` (warm-up, stable, decay) stays at the peak and decays linearly over
    the last ``decay_share``: a run can be extended from any checkpoint before the decay."""
    warmup_steps: int = 100
    final_ratio: float = 0.1
    decay_share: float = 0.2
    """Of all steps, for ``wsd``."""
    restart_at: int = 0
    """The step at which warm-up and decay start again, for a finished run that is extended with more ``tokens``
    (Ibrahim et al. 2024, arXiv:2403.08763)."""

    def __post_init__(self) -> None:
        _require(0 <= self.final_ratio <= 1, f"final_ratio is {self.final_ratio}; between 0 and 1")
        _require(0 < self.decay_share <= 1, f"decay_share is {self.decay_share}; above 0, at most 1")
        _at_least(self, warmup_steps=0, restart_at=0)


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run stops because of its loss; a loss that is not finite always stops it."""

    spike_ratio: float | None = 2.0
    """Stop at a loss of more than this times the running mean; stages of a curriculum differ by less. None is never."""
    after_steps: int = 50
    """Steps before the running mean is used."""

    def __post_init__(self) -> None:
        _above(self, 1, "spike_ratio")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on text that is never trained on, for each stage and each language, also in bits per byte."""

    every: int = 100
    """Steps between validations, one more after the last step; 0 is never."""
    samples: int | None = 64
    """Samples of each validation, the same every time, shared evenly among the stages; null is all."""

    def __post_init__(self) -> None:
        _at_least(self, every=0, samples=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved and which are kept."""

    every: int = 100
    """Steps between checkpoints; one more is saved at the end and on SIGTERM."""
    keep_last: int = 2
    """Newest checkpoints kept in the bucket."""
    keep_every: int | None = None
    """Checkpoints at multiples of this step are kept as well."""
    keep_best: bool = True
    """Whether the one with the lowest validation loss is kept as well; only validated steps have one."""
    max_pending: int = 2
    """Checkpoints that may wait on local disk for upload."""
    on_backlog: Literal["wait", "skip"] = "wait"
    """Whether the trainer waits at a checkpoint while ``max_pending`` are waiting, or skips it. Those at the end and on
    SIGTERM are never skipped."""

    def __post_init__(self) -> None:
        _at_least(self, every=1, keep_last=1, max_pending=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the trainer."""

    tokens: int
    """Tokens to train on, rounded down to whole steps."""
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig | None = None
    """Fine-tuning: the model is frozen, and only the adapter is trained and saved."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    precision: Precision = "bf16-mixed"
    """``bf16-mixed`` computes in bf16 with float32 weights and moments. ``bf16-true`` has bf16 ones, half the memory;
    updates below 1/256 of a weight are lost, so a small learning rate stalls."""
    float8: Float8 = "none"
    """Whether the blocks' linear layers multiply in fp8, with inputs scaled a tensor or a row. Needs an Ada, Hopper or
    Blackwell GPU; a CPU emulates it. Checkpoints do not change, so a run may be resumed with another value."""
    activation_checkpointing: Recompute = "full"
    """What the backward pass recomputes: ``full`` each block, ``selective`` all but the results of matrix products and
    attention, ``none`` nothing."""
    sharding: Literal["auto", "step", "pass", "full"] = "auto"
    """With several processes: ``step`` gathers weights once a step and exchanges gradients at its end. ``pass`` gathers
    weights for each forward and backward pass: less memory, more traffic. ``full`` also exchanges gradients after each
    micro-batch. ``auto`` is the first that :mod:`bafogpt.train.estimates.memory` expects to fit."""
    compile: When = "auto"
    """Whether blocks are compiled; ``auto`` on a GPU only. The first step takes a minute longer."""
    deterministic: bool = False
    """Bit-equal runs on a GPU, with slower kernels that add in a fixed order; on a CPU they always are."""
    seed: int = 1
    log_every: int = 1
    """Steps between metrics lines."""
    profile: int = 0
    """Steps to profile, after the first three of an attempt, which become slower. The trace, for Chrome's viewer, and a
    table of operators are uploaded to ``profile/`` of the run."""

    def __post_init__(self) -> None:
        _at_least(self, profile=0)
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
    """Raise :class:`ConfigError` for a job that this number of processes cannot train.

    A step's samples must divide evenly among them. The blocks of 8-bit moments are no rows, so they cannot be sharded.
    In ``bf16-mixed`` FSDP casts what it shards, and an adapter's frozen base is not sharded.
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
