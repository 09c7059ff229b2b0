"""Attention's and the loss's kernels compiled to the cubin: ``python -m tests.gpu_path.probes.kernels HEAD DTYPE``.

Prints the shared memory of each, the card's limit, and what went wrong.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from torch._inductor.runtime import triton_heuristics

from bafogpt.model import attention, flex, loss
from bafogpt.model.config import gpt_config

TOKENS, VOCABULARY, WIDTH = 2048, 296_000, 2304


def attend(head: int, dtype: torch.dtype, *, window: int | None, packed: bool, softcap: float | None) -> None:
    """Attention as a compiled block calls it, forward and backward."""
    torch._dynamo.reset()
    documents = torch.zeros(2, TOKENS, dtype=torch.int32, device="cuda") if packed else None
    mask = flex.flex_mask(TOKENS, window, documents=documents, device="cuda")

    @torch.compile(dynamic=False, fullgraph=True)
    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention.attend(q, k, v, mask, scale=head**-0.5, softcap=softcap) * 2

    q = torch.empty(2, 8, TOKENS, head, device="cuda", dtype=dtype, requires_grad=True)
    k, v = (torch.empty(2, 4, TOKENS, head, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    block(q, k, v).sum().backward()


def cross_entropy(dtype: torch.dtype) -> None:
    """The fused loss with all that a job can ask of it."""
    hidden = torch.empty(2048, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.empty(VOCABULARY, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
    targets = torch.zeros(2048, dtype=torch.int64, device="cuda")
    loss.linear_cross_entropy(hidden, weight, targets, softcap=30.0, z_loss=1e-4).backward()


def masks_of(shape: Any, tokens: int) -> int:
    """How many masks are made for one forward pass over packed documents; Gemma-2's window is 4,096."""
    made, make = [], flex.create_block_mask
    flex.create_block_mask = lambda *words, **options: made.append(1) or make(*words, **options)
    angles = torch.empty(8192, 256, device="cuda")
    attention.make_masks(shape, angles, angles, tokens, torch.zeros(1, tokens, dtype=torch.int32, device="cuda"), None)
    flex.create_block_mask = make
    return len(made)


def main() -> None:
    head, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    compiled: list[tuple[str, int]] = []
    compile_kernel = triton.compile

    def record(*words: Any, **options: Any) -> Any:
        kernel = compile_kernel(*words, **options)
        compiled.append((kernel.metadata.name, kernel.metadata.shared))
        return kernel

    triton_heuristics.triton.compile = record
    errors = {}
    for window, packed, softcap in ((None, False, 50.0), (1024, True, 50.0), (None, False, None)):
        try:
            attend(head, dtype, window=window, packed=packed, softcap=softcap)
        except Exception as error:
            errors[f"window {window}, packed {packed}"] = f"{type(error).__name__}: {str(error)[:300]}"
    try:
        cross_entropy(dtype)
    except Exception as error:
        errors["loss"] = f"{type(error).__name__}: {str(error)[:300]}"
    shape = gpt_config("Gemma-2-2b", {}, VOCABULARY)
    masks = {tokens: masks_of(shape, tokens) for tokens in (2048, 6144)}
    attended = [(name, shared) for name, shared in compiled if "flex_attention" in name and "tem" in name]
    limit = flex.shared_memory(0)
    print(
        json.dumps({"limit": limit, "attention": attended, "compiled": len(compiled), "errors": errors, "masks": masks})
    )


if __name__ == "__main__":
    main()
