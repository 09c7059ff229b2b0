"""Sizes of the loss's chunks. Imports no torch: launches estimate memory and time with it.

Each chunk reads the output head twice and rewrites its float32 gradient, so small chunks are slow: with 296,000 ids and
64 rows that traffic takes half of a step on an L40; with 1,024 rows it overlaps with the matrix products.
"""

from __future__ import annotations

GPU_BYTES = 640 << 20
"""Budget for the logits of a chunk on a GPU, in bf16: 1,024 rows of 296,000."""
CPU_BYTES = 256 << 20
"""The same on a CPU, in float32, for each of two buffers."""
ROWS_STEP = 128
"""Rows on a GPU are a multiple of this, the height of a matrix kernel's tile."""


def chunk_rows(vocabulary: int, tokens: int, *, gpu: bool) -> int:
    """Rows of ``vocabulary`` logits within the budget, at least one and at most ``tokens``.

    On a GPU chunks have equal sizes where possible: a small last one costs as much as a full one.
    """
    if not gpu:
        return min(tokens, max(1, CPU_BYTES // (4 * vocabulary)))
    most = max(1, GPU_BYTES // (2 * vocabulary) // ROWS_STEP) * ROWS_STEP
    even = -(-tokens // -(-tokens // most))
    return min(tokens, -(-even // ROWS_STEP) * ROWS_STEP)


def chunk_bytes(vocabulary: int, tokens: int, *, gpu: bool, itemsize: int = 2) -> int:
    """Bytes of the logits' buffers for ``tokens`` tokens; on a GPU with ``itemsize`` bytes per number."""
    return chunk_rows(vocabulary, tokens, gpu=gpu) * vocabulary * (itemsize if gpu else 8)
