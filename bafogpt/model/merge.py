"""Merges an adapter into its base, and compares the result with the two apart.

If the base was 4-bit in training, the adapter was trained on the *dequantised* base, and merging into that reproduces
the trained model. The *original* base still has what quantisation removed, which the adapter was not trained with.
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
from bafogpt.model.formats.safetensors_io import Advance
from bafogpt.model.gpt import GPT, load_gpt

MergeTarget = Literal["dequantised", "original"]
MERGE_TARGETS: tuple[MergeTarget, ...] = ("dequantised", "original")
MERGED = "weights: a LoRA adapter merged into them"


@dataclass(frozen=True, kw_only=True)
class MergeComparison:
    """The merged model compared with base and adapter, on the same samples."""

    samples: int
    tokens: int
    """Predicted tokens."""
    trained_loss: float
    """Of base and adapter, nats per token."""
    merged_loss: float
    argmax: float
    """Share of tokens with the same most probable prediction."""
    largest_difference: float
    """Largest difference of a logit."""


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    samples: Iterable[torch.Tensor],
    *,
    into: MergeTarget = "dequantised",
    changes: Sequence[str] | None = (),
    progress: Advance = lambda _: None,
) -> MergeComparison:
    """Write ``base`` merged with ``adapter`` to the new folder ``out``, and compare both on ``samples`` ([T] int64).

    ``changes`` are listed before the merge (:func:`~bafogpt.model.formats.folder.write`). Weights are streamed; the
    comparison has one network in memory at a time. Raises :class:`~bafogpt.core.errors.ConflictError` where ``out``
    exists, :class:`ConfigError` where the adapter is for another base or changes a tied head, :class:`DataError`
    without samples, and what :meth:`ModelFolder.open` and :func:`~bafogpt.model.formats.folder.write` raise.
    """
    files.require_new(out)
    model = ModelFolder.open(base)
    config, _ = adapters.read_config(adapter)
    if model.tied and {"head", "embedding"} & set(config.targets):
        message = f"{adapter} changes embedding or head, which are one matrix in {base}"
        raise ConfigError(message, "train on a base with a head of its own")
    held_out = [sample[None] for sample in samples]
    if not held_out:
        raise DataError("there is nothing to compare the models on", "--text FILE with held-out text")
    trained = load_gpt(model)
    lora.load(adapter, trained, model.config)  # raises for another base, before anything is written
    if into == "dequantised":
        nf4.quantise(trained)
    reference = [_logits(trained, sample) for sample in held_out]
    del trained
    weights, listed = merged(model, adapter, config, into), None if changes is None else (*changes, MERGED)
    made = folders.write(out, model.content, weights, companions=model.companions(), changes=listed, progress=progress)
    network = load_gpt(made)
    return _compare(reference, [_logits(network, sample) for sample in held_out], held_out)


def merged(model: ModelFolder, adapter: Path, config: AdapterConfig, into: MergeTarget) -> Iterator[LazyTensor]:
    """The base's tensors with the adapter's update, by Hugging Face's names, in their own dtypes."""
    pairs = {name: weight.tensor() for name, weight in safetensors_io.read_file(adapter / adapters.WEIGHTS).items()}
    ours = param_names.to_litgpt(model.weights, model.config)
    if into == "dequantised":
        ours = {name: _quantised(weight) if _is_frozen_in_4_bits(name) else weight for name, weight in ours.items()}
    for weight in param_names.to_hf(ours.values(), model.config):
        yield _with_pair(weight, pairs, config.scaling)


def _is_frozen_in_4_bits(name: str) -> bool:
    """Whether :func:`nf4.quantise` quantises that matrix: those within the blocks."""
    return name.startswith("transformer.h.") and "norm" not in name


def _quantised(weight: LazyTensor) -> LazyTensor:
    """A matrix after quantisation to NF4 and back, read at once: the second-level scales span the whole matrix."""
    kept: list[torch.Tensor] = []

    def read(start: int, stop: int) -> torch.Tensor:
        if not kept:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta")
            linear.weight = nn.Parameter(weight.tensor(), requires_grad=False)
            kept.append(nf4.dequantised(nf4.NF4Linear.of(linear)))
        rows = kept[0][start:stop].to(weight.dtype)
        if stop == weight.rows:
            kept.clear()  # free it for the next matrix
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
