"""Floating point operations of training, for the trainer's MFU and the price of a launch. No torch here."""

from __future__ import annotations

from typing import Protocol

from bafogpt.model.adapter import OUTSIDE, AdapterConfig


class Shape(Protocol):
    """The sizes of a model: litgpt's ``Config``, or one of :mod:`bafogpt.jobs.model_shape`."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_query_groups(self) -> int | None: ...
    @property
    def head_size(self) -> int | None: ...
    @property
    def intermediate_size(self) -> int | None: ...
    @property
    def padded_vocab_size(self) -> int | None: ...
    @property
    def mlp_class_name(self) -> str: ...
    @property
    def sliding_window_size(self) -> int | None: ...
    @property
    def sliding_window_indices(self) -> list[int] | None: ...


def block_weights(shape: Shape) -> int:
    """Weights of all blocks that multiply an activation."""
    head, heads = shape.head_size or 0, shape.n_head
    groups = shape.n_query_groups or heads
    attention = shape.n_embd * head * (heads + 2 * groups) + heads * head * shape.n_embd
    mlp = (3 if "LLaMA" in shape.mlp_class_name or "Gemma" in shape.mlp_class_name else 2) * (
        shape.n_embd * (shape.intermediate_size or 0)
    )
    return shape.n_layer * (attention + mlp)


def head_weights(shape: Shape) -> int:
    """Weights of the output head."""
    return shape.n_embd * (shape.padded_vocab_size or 0)


def matrix_weights(shape: Shape) -> int:
    """Weights that multiply an activation: blocks and output head, without embedding and norms."""
    return block_weights(shape) + head_weights(shape)


def pairs(shape: Shape, adapter: AdapterConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of each matrix of the network that ``adapter`` adds a pair to."""
    d, inner, vocabulary = shape.n_embd, shape.intermediate_size or 0, shape.padded_vocab_size or 0
    query = shape.n_head * (shape.head_size or 0)
    group = (shape.n_query_groups or shape.n_head) * (shape.head_size or 0)
    of = {
        "query": [(d, query)],
        "key": [(d, group)],
        "value": [(d, group)],
        "projection": [(query, d)],
        "mlp": [(d, inner), (d, inner), (inner, d)],
        "head": [(d, vocabulary)],
        "embedding": [(vocabulary, d)],
    }
    return [sides for name in adapter.targets for sides in of[name] * (1 if name in OUTSIDE else shape.n_layer)]


def adapter_weights(shape: Shape, adapter: AdapterConfig) -> int:
    """Numbers in an adapter: r x (inputs + outputs) of each pair."""
    return adapter.r * sum(inputs + outputs for inputs, outputs in pairs(shape, adapter))


def attention_flops(shape: Shape, sequence_length: int) -> float:
    """Operations a token of causal attention in all layers, forward and backward: 12·H·Q·(tokens attended to).

    A token sees min(t, window) others: T/2 on average, or w − w²/(2T) where the window w is less than T.
    """
    windows = shape.sliding_window_indices or [0] * shape.n_layer
    reach = 0.0
    for layer in range(shape.n_layer):
        size = (shape.sliding_window_size if windows[layer] else None) or sequence_length
        window = min(sequence_length, size)
        reach += window - window**2 / (2 * sequence_length)
    return 12 * shape.n_head * (shape.head_size or 0) * reach


def flops_per_token(shape: Shape, sequence_length: int, adapter: AdapterConfig | None = None) -> float:
    """Floating point operations a token of one forward and backward pass: the numerator of MFU.

    6 for each weight that multiplies an activation (2 forward, 2 for the gradient of its input, 2 for its own), and
    attention's (PaLM, appendix B, halved for the mask and shortened by a sliding window). With an ``adapter`` 4 for
    each frozen weight, which has no gradient of its own, and 6 for each of the adapter's. Recomputation is not counted.
    """
    attention = attention_flops(shape, sequence_length)
    if adapter is None:
        return 6 * matrix_weights(shape) + attention
    looked_up = (shape.padded_vocab_size or 0) * adapter.r * ("embedding" in adapter.targets)
    return 4 * matrix_weights(shape) + 6 * (adapter_weights(shape, adapter) - looked_up) + attention
