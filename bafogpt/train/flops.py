"""What training costs in floating point operations, and what a GPU can do. No torch here: a launch is priced with it.

The trainer's MFU and the price of a launch come from the same numbers.
"""

from __future__ import annotations

from typing import Protocol

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
}
"""Dense bf16 operations a second, from the makers' data sheets; looked up in this order in the device's name."""

MEMORY_GB = {
    "H200": 141,
    "H100": 80,
    "A100-80GB": 80,
    "A100": 40,
    "L40S": 48,
    "L40": 48,
    "A10G": 24,
    "A10": 24,
    "L4": 24,
}
"""Memory of one GPU by SkyPilot's name of it, from the makers' data sheets."""


class Shape(Protocol):
    """The sizes of a model: litgpt's ``Config`` has them, and so has :mod:`bafogpt.cloud.throughput`."""

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


def of_device(name: str) -> float | None:
    """Operations a second of the GPU that a driver calls ``name``; None for one that is not listed."""
    plain = name.upper().replace(" ", "")
    return next((value for key, value in PEAK_FLOPS.items() if key in plain), None)


def of_accelerator(name: str) -> float | None:
    """The same for SkyPilot's name of it: ``L40``, ``A100-80GB``. L40 and L40S, A10 and A10G are different."""
    return PEAK_FLOPS.get(name.upper().partition("-")[0])


def matrix_weights(shape: Shape) -> int:
    """Weights that multiply an activation: all but the embedding's rows and the norms; the output head is in."""
    head, heads = shape.head_size or 0, shape.n_head
    groups = shape.n_query_groups or heads
    attention = shape.n_embd * head * (heads + 2 * groups) + heads * head * shape.n_embd
    mlp = (3 if "LLaMA" in shape.mlp_class_name or "Gemma" in shape.mlp_class_name else 2) * (
        shape.n_embd * (shape.intermediate_size or 0)
    )
    return shape.n_layer * (attention + mlp) + shape.n_embd * (shape.padded_vocab_size or 0)


def flops_per_token(shape: Shape, sequence_length: int) -> float:
    """Floating point operations of one forward and backward pass, a token.

    6 for each weight that multiplies an activation (2 forward, 4 backward; the embedding look-up multiplies
    nothing, the output head does), and 12·L·H·Q·T/2 for causal attention (PaLM, appendix B, halved for the mask;
    a sliding window caps T). Recomputation under activation checkpointing is not counted: this is the numerator
    of MFU, not of hardware utilisation.
    """
    reach = 0.0
    for layer in range(shape.n_layer):
        window = shape.sliding_window_size if (shape.sliding_window_indices or [0] * shape.n_layer)[layer] else None
        reach += min(sequence_length, window or sequence_length) / 2
    return float(6 * matrix_weights(shape) + 12 * shape.n_head * (shape.head_size or 0) * reach)


def state_bytes(shape: Shape, precision: str) -> int:
    """Bytes of weights, gradients and AdamW's two moments, over all GPUs; activations and buffers come on top.

    Four numbers for each weight, of 4 bytes, or of 2 where ``precision`` is ``bf16-true``. The output head is taken to
    be the embedding matrix, and norms are left out: together less than a thousandth.
    """
    return matrix_weights(shape) * 4 * (2 if precision == "bf16-true" else 4)
