"""The ``train:`` section of a job file, as dataclasses. No torch here: the launcher checks jobs with these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]


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

    def __post_init__(self) -> None:
        _require(self.sequence_length >= 2, f"sequence_length is {self.sequence_length}; a sample needs 2 tokens")
        _require(self.prefetch >= 0, f"prefetch is {self.prefetch}; at least 0")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model learns. The vocabulary comes from the dataset's tokenizer, padded to a multiple of 64."""

    name: str = "Gemma-2-2b"
    """A litgpt configuration name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of litgpt's ``Config`` to change, for a model of another size: ``n_layer``, ``n_embd``, …"""
    checkpoint: str | None = None
    """Where in the bucket the first weights come from: a model folder (``models/NAME``) or a run, for its newest
    checkpoint (``runs/NAME``). None starts from random ones."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding matrix, as in Gemma-2."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many tokens make one optimizer step."""

    tokens: int = 262_144
    """Tokens a step, over all processes."""
    micro: int = 4
    """Samples a process pushes through the model at once; the rest of the step is gradient accumulation."""

    def __post_init__(self) -> None:
        _require(self.micro >= 1, f"micro is {self.micro}; at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Norms and biases are not decayed."""

    learning_rate: float = 2e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; must be above 0")
        _require(self.clip_norm > 0, f"clip_norm is {self.clip_norm}; must be above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then a cosine down to ``final_ratio`` of the peak at the last step."""

    warmup_steps: int = 100
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        _require(0 <= self.final_ratio <= 1, f"final_ratio is {self.final_ratio}; between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on text that is never trained on."""

    every: int = 100
    """Steps between validations; also done after the last step. 0 is never."""
    samples: int = 64
    """Samples read each time: the first of the validation split, always the same."""


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
    when_behind: Literal["wait", "skip"] = "wait"
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
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    precision: Precision = "bf16-mixed"
    activation_checkpointing: bool = True
    """Recompute each block's activations in the backward pass instead of keeping them."""
    seed: int = 1
    log_every: int = 1
    """Steps between metrics lines."""

    def __post_init__(self) -> None:
        per_micro = self.data.sequence_length * self.batch.micro
        _require(
            self.batch.tokens % per_micro == 0,
            f"batch.tokens is {self.batch.tokens}, not a multiple of "
            f"sequence_length {self.data.sequence_length} times batch.micro {self.batch.micro} = {per_micro}",
        )
        _require(self.steps >= 1, f"tokens is {self.tokens}, less than one batch of {self.batch.tokens}")

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.tokens // self.batch.tokens

    @property
    def batch_samples(self) -> int:
        """Samples a step, over all processes."""
        return self.batch.tokens // self.data.sequence_length
