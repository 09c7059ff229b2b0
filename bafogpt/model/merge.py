"""An adapter made part of its base: a model folder like any other, and what that changes.

Where the base was 4-bit in training, what was trained is the adapter on the *dequantised* base, and merging into that
reproduces it. Merging into the *original* base keeps what quantising took away, which the adapter has never seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from bafogpt.core import files
from bafogpt.core.errors import ConfigError, DataError
from bafogpt.model import adapter as adapters
from bafogpt.model import lora, nf4
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats import param_names, safetensors_io
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.formats.lazy_tensor import LazyTensor
from bafogpt.model.formats.safetensors_io import SHARD_BYTES, Advance
from bafogpt.model.gpt import GPT, load_gpt

MergeTarget = Literal["dequantised", "original"]
MERGE_TARGETS: tuple[MergeTarget, ...] = ("dequantised", "original")
MERGED = "weights: a LoRA adapter merged into them"


@dataclass(frozen=True, kw_only=True)
class MergeComparison:
    """A merged model against what was trained, on the same samples."""

    samples: int
    tokens: int
    """Predicted ones."""
    trained_loss: float
    """Of base and adapter as they were trained, nats a token."""
    merged_loss: float
    argmax: float
    """Share of tokens for which both hold the same one for the likeliest."""
    largest_difference: float
    """Of any logit."""


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    samples: Iterable[torch.Tensor],
    *,
    into: MergeTarget = "dequantised",
    changes: Sequence[str] | None = (),
    shard_bytes: int = SHARD_BYTES,
    progress: Advance = lambda _: None,
) -> MergeComparison:
    """Write ``base`` with ``adapter`` in it as the new folder ``out``, and hold it against the two apart.

    ``samples`` are [T] int64 that neither has seen; ``changes`` are what
    :func:`folder.write` lists before the merge. Weights are streamed: one matrix at a time where they are quantised
    first, a block of rows where they are not; the comparison has one network in memory at a time. Raises
    :class:`ConflictError` where ``out`` is there already, :class:`ConfigError` where the adapter is for another base or
    sits on a head that is the embedding, :class:`DataError` without samples, and what :meth:`ModelFolder.open` and
    :func:`folder.write` raise.
    """
    files.require_new(out)
    model = ModelFolder.open(base)
    config, _ = adapters.read_config(adapter)
    if model.tied and {"head", "embedding"} & set(config.targets):
        raise ConfigError(
            f"{adapter} changes embedding or head, which are one matrix in {base}",
            "train on a base with a head of its own",
        )
    held_out = [sample[None] for sample in samples]
    if not held_out:
        raise DataError("there is nothing to compare the models on", "--text FILE with some held-out text")
    trained = load_gpt(model)
    lora.load(adapter, trained, model.config)  # refuses another base, before anything is written
    trained.eval()  # the pairs too: they are new, and would drop some of their inputs
    if into == "dequantised":
        nf4.quantise(trained)
    reference = [_logits(trained, sample) for sample in held_out]
    del trained
    weights = merged(model, adapter, config, into)
    made = folders.write(
        out,
        model.content,
        weights,
        companions=model.companions(),
        changes=None if changes is None else (*changes, MERGED),
        shard_bytes=shard_bytes,
        progress=progress,
    )
    network = load_gpt(made)
    return _compare(reference, [_logits(network, sample) for sample in held_out], held_out)


def merged(model: ModelFolder, adapter: Path, config: AdapterConfig, into: MergeTarget) -> Iterator[LazyTensor]:
    """The base's tensors with what the adapter adds, by Hugging Face's names, in their own dtypes."""
    pairs = {name: weight.tensor() for name, weight in safetensors_io.read_file(adapter / adapters.WEIGHTS).items()}
    ours = param_names.to_litgpt(model.weights, model.config)
    if into == "dequantised":
        ours = {name: _quantised(weight) if _is_frozen_in_4_bits(name) else weight for name, weight in ours.items()}
    for weight in param_names.to_hf(ours.values(), model.config):
        yield _with_pair(weight, pairs, config.scaling)


def _is_frozen_in_4_bits(name: str) -> bool:
    """Whether :func:`nf4.quantise` makes that matrix NF4: those within the blocks."""
    return name.startswith("transformer.h.") and "norm" not in name


def _quantised(weight: LazyTensor) -> LazyTensor:
    """A matrix as NF4 gives it back. All of it is read at once: the scales of the scales are the whole matrix's."""
    kept: list[torch.Tensor] = []

    def read(start: int, stop: int) -> torch.Tensor:
        if not kept:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta")
            linear.weight = nn.Parameter(weight.tensor(), requires_grad=False)
            kept.append(nf4.dequantised(nf4.NF4Linear.of(linear)))
        rows = kept[0][start:stop].to(weight.dtype)
        if stop == weight.rows:
            kept.clear()  # the last rows: the next matrix needs the room
        return rows

    return LazyTensor(weight.name, weight.shape, weight.dtype, read)


def _with_pair(weight: LazyTensor, pairs: Mapping[str, torch.Tensor], scaling: float) -> LazyTensor:
    module = f"base_model.model.{weight.name.removesuffix('.weight')}"
    if f"{module}.lora_A.weight" in pairs:
        a, b = pairs[f"{module}.lora_A.weight"].float(), pairs[f"{module}.lora_B.weight"].float()
    elif f"{module}.lora_embedding_A" in pairs:  # [r, V] and [C, r]: transposed
        b, a = pairs[f"{module}.lora_embedding_A"].float().T, pairs[f"{module}.lora_embedding_B"].float().T
    else:
        return weight

    def read(start: int, stop: int) -> torch.Tensor:
        rows = weight.read(start, stop)
        return (rows.float() + b[start:stop] @ a * scaling).to(rows.dtype)

    return LazyTensor(weight.name, weight.shape, weight.dtype, read)


@torch.no_grad()
def _logits(network: GPT, sample: torch.Tensor) -> torch.Tensor:
    """[T, V] float32 of a sample [1, T]."""
    logits: torch.Tensor = network(sample)
    return logits[0].float()


def _compare(ours: list[torch.Tensor], theirs: list[torch.Tensor], samples: list[torch.Tensor]) -> MergeComparison:
    losses, same, count, largest = [0.0, 0.0], 0, 0, 0.0
    for a, b, sample in zip(ours, theirs, samples, strict=True):
        targets = sample[0, 1:]
        for index, logits in enumerate((a, b)):
            losses[index] += functional.cross_entropy(logits[:-1], targets, reduction="sum").item()
        same += int((a[:-1].argmax(-1) == b[:-1].argmax(-1)).sum())
        largest = max(largest, (a - b).abs().max().item())
        count += len(targets)
    return MergeComparison(
        samples=len(samples),
        tokens=count,
        trained_loss=losses[0] / count,
        merged_loss=losses[1] / count,
        argmax=same / count,
        largest_difference=largest,
    )
