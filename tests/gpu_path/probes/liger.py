"""Liger's kernel in the project's loop, interpreted on the CPU, against the loop's own PyTorch: loss and gradients.

Prints the relative error of each against float64, by case. Runs under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import json
from typing import Any

import liger_kernel.ops.cross_entropy as liger
import torch
import triton
import triton.language as tl

from bafogpt.model import loss as losses
from bafogpt.model.loss import IGNORE


class Scalar(float):
    """A number as a kernel has it: the interpreter hands on Python's, which have no ``to``."""

    def to(self, *_: Any) -> float:
        return float(self)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]  # functions of CUDA's library give nothing when they are interpreted
    return 2 * tl.sigmoid(2 * x) - 1


def exact(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None, z: float
) -> list[torch.Tensor]:
    """Loss and gradients as they are in books, in float64."""
    h, w = (each.double().requires_grad_() for each in (hidden, weight))
    logits = h @ w.mT
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_sum, valid = torch.logsumexp(logits, -1), targets != IGNORE
    gold = logits.gather(1, targets.where(valid, 0)[:, None])[:, 0]
    total = ((log_sum - gold + z * log_sum**2) * valid).sum()
    return [total.detach(), *torch.autograd.grad(total * 0.25, (h, w))]


def errors(dtype: torch.dtype, softcap: float | None, z: float, rows: int) -> list[float]:
    """Relative errors of the loss and of the gradients of hidden and weight."""
    chance = torch.Generator().manual_seed(1)
    hidden = (torch.randn(48, 32, generator=chance) * 2).to(dtype)
    weight = (torch.randn(1003, 32, generator=chance) * 0.7).to(dtype)
    targets = torch.randint(0, 1003, (48,), generator=chance)
    targets[::5] = IGNORE
    losses.chunk_rows = lambda vocabulary, tokens, gpu: min(rows, tokens)  # type: ignore[assignment]
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    cap = None if softcap is None else Scalar(softcap)
    value = losses.linear_cross_entropy(h, w, targets, softcap=cap, z_loss=z)
    found = [value.detach(), *torch.autograd.grad(value * 0.25, (h, w))]
    wanted = exact(hidden, weight, targets, softcap, z)
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


def main() -> None:
    liger.tanh = tanh
    losses._TorchChunk = losses._LigerChunk  # type: ignore[misc]
    found = {
        f"{str(dtype).removeprefix('torch.')}, cap {softcap}, z {z}, {rows} rows": errors(dtype, softcap, z, rows)
        for dtype in (torch.float32, torch.bfloat16)
        for softcap, z, rows in ((30.0, 0.0, 48), (30.0, 1e-2, 7), (None, 0.0, 16), (None, 1e-2, 48))
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
