"""flex_attention on a GPU: its masks, and block sizes that fit the card's shared memory.

A kernel keeps its blocks of queries, keys and values in shared memory and fails on a card with too little of it.
Inductor's default block sizes do not fit a head of 256 on a card of 99 KiB (L40, A10, 4090, 5090: pytorch issue
180278), so they are chosen here by these bounds in bytes. D is the head size rounded up to a power of two, e the bytes
of a number, M the queries of a block, N its keys, s the pipeline stages::

    forward    e·(D·(M + 2·N·max(s − 1, ½)) + M·N) + 256          queries; keys and values; probabilities
    backward   2·e·D·(N1 + M1) + 4·e·M1·N1 + 256, s ≤ 2           for the gradients of keys and values
               2·e·D·(M2 + N2) + 4·e·M2·N2 + 256, s ≤ 2           for the gradient of queries

The bounds hold for every kernel that torch 2.13 with Triton 3.7 compiled for a card of 99 KiB; a test compiles them
for each kind of card. Example, D = 256 in bfloat16: forward 64 × 32 with 2 stages takes 69,888 bytes, backward 32 × 32
with 2 stages 73,984. On Hopper the same blocks need more; the fastest were measured (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bafogpt.core.errors import ConfigError

OPTIONS = (
    *("fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_stages", "fwd_num_warps"),
    *("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2", "bwd_num_stages", "bwd_num_warps"),
)
"""The kernel options of flex_attention that are set here."""
FORWARD = ((128, 64, 2), (64, 64, 2), (64, 32, 2), (32, 32, 2), (32, 16, 2), (16, 16, 1))
"""(M, N, s) by preference: larger blocks read keys and values fewer times."""
BACKWARD = ((64, 64, 2), (32, 64, 2), (32, 32, 2), (16, 32, 2), (16, 16, 1))
"""(M1, N1, s), with M2 = N1 and N2 = M1, as Inductor requires."""
SMALL_ROW = 256
"""Bytes of a head's row up to which Inductor's blocks fit every card (at most 98,304 bytes were measured)."""
WARPS = 4
"""Warps per block; Inductor's default."""
LARGE_SHARED, LARGE_ROW = 160_000, 1024
"""A card with that much shared memory (A100, H100) fits Inductor's blocks up to that many bytes per row."""
HOPPER_SHARED, HOPPER_ROW = 232_448, 512
"""H100 and H200 with a head of 256 in bfloat16 use :data:`HOPPER`."""
HOPPER = (64, 32, 2, 4, 64, 64, 64, 64, 2, 8)
"""Values of :data:`OPTIONS`. With Inductor's 4 warps the backward kernel spills 1,768 bytes of registers per thread,
with 8 warps 440."""


def flex_attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, *, scale: float, softcap: float | None
) -> torch.Tensor:
    """:func:`bafogpt.model.attention.attend` by flex_attention: compiled on a GPU; eager, without backward, on a CPU.

    Raises :class:`ConfigError` where no block size fits the card.
    """

    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    alone = q.is_cuda and not torch.compiler.is_compiling()  # inside a compiled block it is compiled with the block
    kernel = _compiled_flex() if alone else flex_attention
    sizes = _block_sizes_of(q.size(-1), q.element_size(), q.device.index) if q.is_cuda else None
    attended: torch.Tensor = kernel(
        q,
        k,
        v,
        score_mod=capped if softcap else None,
        block_mask=mask,
        scale=scale,
        enable_gqa=True,
        kernel_options=dict(zip(OPTIONS, sizes, strict=True)) if sizes else None,
    )
    return attended


def block_sizes(head_size: int, itemsize: int, shared: int) -> tuple[int, ...] | None:
    """Values of :data:`OPTIONS` for a card with ``shared`` bytes of shared memory per block; None for Inductor's.

    Raises :class:`ConfigError` where not even the smallest block fits.
    """
    row = (1 << (head_size - 1).bit_length()) * itemsize
    if shared == HOPPER_SHARED and row == HOPPER_ROW:
        return HOPPER
    if row <= SMALL_ROW or (shared >= LARGE_SHARED and row <= LARGE_ROW):
        return None
    forward = next((each for each in FORWARD if forward_bytes(row, itemsize, *each) <= shared), None)
    backward = next((each for each in BACKWARD if backward_bytes(row, itemsize, *each) <= shared), None)
    if forward is None or backward is None:
        raise ConfigError(
            f"attention with a head of {head_size} numbers of {itemsize} bytes does not fit the {shared:,} bytes of "
            "shared memory of this GPU",
            "--set train.precision=bf16-mixed, or a GPU with more shared memory (A100, H100)",
        )
    m, n, stages = backward
    return (*forward, WARPS, m, n, n, m, stages, WARPS)


def forward_bytes(row: int, itemsize: int, m: int, n: int, stages: int) -> int:
    """Shared memory of the forward kernel; ``row`` is D·e. See the module's docstring."""
    return int(row * (m + 2 * n * max(stages - 1, 0.5))) + itemsize * m * n + 256


def backward_bytes(row: int, itemsize: int, m: int, n: int, stages: int) -> int:
    """Shared memory of the backward kernel, whose two halves need the same with M2 = N1 and N2 = M1."""
    assert stages <= 2, "the bound is for one buffer of queries and output gradients"
    return 2 * row * (m + n) + 4 * itemsize * m * n + 256


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _block_sizes_of(head_size: int, itemsize: int, device: int) -> tuple[int, ...] | None:
    """:func:`block_sizes` for a GPU; a constant for torch.compile."""
    return block_sizes(head_size, itemsize, shared_memory(device))


def shared_memory(device: int) -> int:
    """Maximum bytes of shared memory per block of threads on a GPU."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub leaves the attribute out
    return int(properties.shared_memory_per_block_optin)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex_mask(
    tokens: int, window: int | None, *, documents: torch.Tensor | None, device: torch.device | str
) -> BlockMask:
    """The causal mask for ``tokens`` tokens, within ``window`` and within the documents that ``documents`` [B, tokens]
    numbers."""
    if documents is None:
        return _causal_mask(tokens, window, str(device))

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return _causal(q, k, window) & (documents[b, q] == documents[b, k])

    return create_block_mask(visible, documents.size(0), None, tokens, tokens, device=str(device))


@functools.lru_cache(maxsize=8)
def _causal_mask(tokens: int, window: int | None, device: str) -> BlockMask:
    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return _causal(q, k, window)

    return create_block_mask(visible, None, None, tokens, tokens, device=device)


def _causal(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    return key <= query if window is None else (key <= query) & (query - key < window)
