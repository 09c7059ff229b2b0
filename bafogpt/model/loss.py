"""Output head, soft-cap and cross-entropy in one, so that all logits never exist at once.

With 296,000 ids the logits of 8,192 tokens are 9.7 GB in float32, and the way back needs them several times. Here a
chunk of tokens goes all the way, gradients included, before the next one begins. On a GPU Liger's kernel does it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.autograd.function import once_differentiable

IGNORE = -100
"""The target of a token that has none: no loss, no gradient."""
CHUNK_BYTES = 256 << 20
"""Logits that exist at a time, in bytes of float32; there are two such buffers."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Σ −log softmax(cap(hidden weightᵀ))[target] in nats, float32, over all targets but :data:`IGNORE`.

    ``hidden`` is [N, C], ``weight`` [V, C], ``targets`` [N] int64; the gradients are in the inputs' types, summed up in
    float32. ``softcap`` c makes a logit x into c · tanh(x / c). ``z_loss`` adds that much of (log Σ exp)² for each
    target (PaLM, section 5), which keeps logits from drifting.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # once, and not for every chunk
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if hidden.is_cuda and _has_liger():
            return _liger(hidden, weight, targets, softcap, z_loss)
        learn = torch.is_grad_enabled()
        loss: torch.Tensor = _Fused.apply(hidden, weight, targets, softcap, z_loss, learn)  # type: ignore[no-untyped-call]
        return loss


def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _liger(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None, z_loss: float
) -> torch.Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # bias, class weights; then ignore index, z-loss, label smoothing, reduction, soft-cap, return z-loss, accumulate in
    options = (None, None, IGNORE, z_loss, 0.0, "sum", softcap, False, torch.float32)
    loss: torch.Tensor = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, *options)[0]
    return loss.float()


class _Fused(torch.autograd.Function):
    """The chunks, in plain PyTorch. The backward pass has only to multiply by the gradient of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcap: float | None,
        z_loss: float,
        learn: bool,
    ) -> torch.Tensor:
        wants_hidden, wants_weight = (learn and flag for flag in ctx.needs_input_grad[:2])
        count, vocabulary = hidden.size(0), weight.size(0)
        rows = max(1, min(count, CHUNK_BYTES // (4 * vocabulary)))
        capped, raw = (hidden.new_empty((rows, vocabulary), dtype=torch.float32) for _ in range(2))
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=torch.float32) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, count, rows):
            h, target = hidden[start : start + rows], targets[start : start + rows]
            p, slope = capped[: len(h)], raw[: len(h)]
            _logits(h, weight, softcap, out=p, tanh=slope)
            valid = target != IGNORE
            safe = target.where(valid, 0).unsqueeze(1)
            gold = p.gather(1, safe).squeeze(1)
            top = p.amax(1, keepdim=True)
            sums = p.sub_(top).exp_().sum(1, keepdim=True)
            log_sum = (sums.log() + top).squeeze(1)
            total += (log_sum - gold + z_loss * log_sum.square()).where(valid, 0.0).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d/dlogit: p · (1 + 2 z log Σ) − 1 at the target, times the soft-cap's slope 1 − tanh²
            p.mul_(((1 + 2 * z_loss * log_sum) * valid).unsqueeze(1).div_(sums))
            p.scatter_add_(1, safe, -valid.to(p.dtype).unsqueeze(1))
            if softcap is not None:
                p.addcmul_(p, slope.square_(), value=-1.0)
            grad_logits = p.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None and hidden.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.mT, h)
            elif grad_weight is not None:
                grad_weight += grad_logits.mT @ h
        ctx.gradients = (grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss's gradients are gone after one backward pass")
        grad_hidden, grad_weight = (each if each is None else each.mul_(grad) for each in ctx.gradients)
        ctx.gradients = None  # so that none is kept beside the parameters' own
        return grad_hidden, grad_weight, None, None, None, None


def _logits(
    h: torch.Tensor, weight: torch.Tensor, softcap: float | None, *, out: torch.Tensor, tanh: torch.Tensor
) -> None:
    """Capped logits into ``out`` and, where there is a cap, their tanh into ``tanh``; [rows, V] float32 both."""
    raw = out if softcap is None else tanh
    if h.dtype == torch.float32:
        torch.mm(h, weight.mT, out=raw)
    else:
        raw.copy_(h @ weight.mT)
    if softcap is not None:
        torch.mul(raw.div_(softcap).tanh_(), softcap, out=out)
