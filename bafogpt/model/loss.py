"""Fused output head, soft-cap and cross-entropy: all logits never exist at once.

With 296,000 ids the logits of 8,192 tokens are 9.7 GB in float32, and the backward pass needs them several times. Here
each chunk of tokens (:mod:`bafogpt.model.loss_chunks`) computes loss and gradients before the next one begins. On a GPU
Liger's Triton kernel turns a chunk of logits into their gradient, within our loop: Liger's own synchronises with the
GPU in each call and uses chunks as small as 16 rows.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bafogpt.model.loss_chunks import chunk_rows

IGNORE = -100
"""A target without loss and gradient, as in PyTorch's cross-entropy."""
LIGER_BLOCK = 32_768
"""Logits that a program of Liger's kernel reads at a time; Liger's default."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Σ −log softmax(cap(hidden weightᵀ))[target] in nats, float32, over all targets but :data:`IGNORE`.

    ``hidden`` is [N, C], ``weight`` [V, C], ``targets`` [N] int64; gradients have the inputs' dtypes and are summed in
    float32. ``softcap`` c maps a logit x to c · tanh(x / c). ``z_loss`` is the coefficient of (log Σ exp)² per target
    (PaLM, section 5), which keeps logits from drifting.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # once, not per chunk
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        learn = torch.is_grad_enabled()
        loss: torch.Tensor = _Fused.apply(hidden, weight, targets, softcap, z_loss, learn)  # type: ignore[no-untyped-call]
        return loss


@functools.cache
def liger_kernel() -> Any:
    """Liger's cross-entropy kernel, or None where the package is not installed.

    Call it before the first forward pass on a GPU: importing Liger registers pytree nodes, which makes every block
    compile again (:func:`bafogpt.train.learner.build_learner`).
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel

    return liger_cross_entropy_kernel


class _Fused(torch.autograd.Function):
    """Computes loss and gradients in chunks; the backward pass only scales them."""

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
        learns = wants_hidden or wants_weight
        count, vocabulary = hidden.size(0), weight.size(0)
        rows = chunk_rows(vocabulary, count, gpu=hidden.is_cuda)
        chunk = (_LigerChunk if hidden.is_cuda and liger_kernel() else _TorchChunk)(hidden, weight, rows, learns)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=torch.float32) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, count, rows):
            h = hidden[start : start + rows]
            loss, grad_logits = chunk(h, targets[start : start + rows], softcap, z_loss)
            total += loss
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits, h)
        ctx.gradients = (grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss's gradients are freed after one backward pass")
        grad_hidden, grad_weight = (each if each is None else each.mul_(grad) for each in ctx.gradients)
        ctx.gradients = None  # free the memory
        return grad_hidden, grad_weight, None, None, None, None


def _add_product(into: torch.Tensor, grad_logits: torch.Tensor, h: torch.Tensor) -> None:
    """``into`` [V, C] float32 += ``grad_logits`` [rows, V] transposed times ``h`` [rows, C]."""
    if h.dtype == torch.float32:
        into.addmm_(grad_logits.mT, h)
    elif h.is_cuda:  # only CUDA can accumulate a product in float32
        torch.addmm(into, grad_logits.mT, h, out_dtype=torch.float32, out=into)
    else:
        into += grad_logits.mT @ h


class _LigerChunk:
    """One chunk by Liger's kernel: two reads and one write of the logits."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, rows: int, learns: bool) -> None:
        self._weight = weight
        self._learns = learns
        self._logits = hidden.new_empty((rows, weight.size(0)))
        self._losses = hidden.new_empty(rows, dtype=torch.float32)

    def __call__(
        self, h: torch.Tensor, target: torch.Tensor, softcap: float | None, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the losses, gradient of the logits [rows, V] in the buffer that the next chunk reuses)."""
        logits, losses = self._logits[: len(h)], self._losses[: len(h)].zero_()  # an ignored target writes no loss
        torch.mm(h, self._weight.mT, out=logits)
        vocabulary = logits.size(1)
        liger_kernel()[(len(h),)](
            X_ptr=logits,
            X_stride=logits.stride(0),
            Y_ptr=target,
            Y_stride=target.stride(0),
            weight_ptr=None,
            loss_ptr=losses,
            z_loss_ptr=None,
            loss_stride=1,
            token_accuracy_ptr=None,
            token_accuracy_stride=0,
            predicted_tokens_ptr=None,
            predicted_tokens_stride=0,
            n_cols=vocabulary,
            n_non_ignore=1,  # for means only, as the next two
            sum_non_ignore_weight=1,
            weight_sum=0.0,
            ignore_index=IGNORE,
            lse_square_scale=z_loss,
            label_smoothing=0.0,
            reduction="sum",
            softcap=softcap,
            RETURN_Z_LOSS=False,
            RETURN_TOKEN_ACCURACY=False,
            RETURN_PREDICTED_TOKENS=False,
            HAS_WEIGHT=False,
            HAS_SOFTCAPPING=softcap is not None,
            HAS_GRADIENTS=self._learns,
            BLOCK_SIZE=min(LIGER_BLOCK, 1 << (vocabulary - 1).bit_length()),
            num_warps=32,
        )
        return losses.sum(), logits


class _TorchChunk:
    """One chunk in plain PyTorch, in float32."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, rows: int, learns: bool) -> None:
        self._weight = weight
        self._learns = learns
        self._capped, self._raw = (hidden.new_empty((rows, weight.size(0)), dtype=torch.float32) for _ in range(2))

    def __call__(
        self, h: torch.Tensor, target: torch.Tensor, softcap: float | None, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the losses, gradient of the logits [rows, V] in the dtype of ``h``)."""
        p, slope = self._capped[: len(h)], self._raw[: len(h)]
        _logits(h, self._weight, softcap, out=p, tanh=slope)
        valid = target != IGNORE
        safe = target.where(valid, 0).unsqueeze(1)
        gold = p.gather(1, safe).squeeze(1)
        top = p.amax(1, keepdim=True)
        sums = p.sub_(top).exp_().sum(1, keepdim=True)
        log_sum = (sums.log() + top).squeeze(1)
        loss = (log_sum - gold + z_loss * log_sum.square()).where(valid, 0.0).sum()
        if not self._learns:
            return loss, p
        # d/dlogit: p · (1 + 2 z log Σ) − 1 at the target, times the soft-cap's slope 1 − tanh²
        p.mul_(((1 + 2 * z_loss * log_sum) * valid).unsqueeze(1).div_(sums))
        p.scatter_add_(1, safe, -valid.to(p.dtype).unsqueeze(1))
        if softcap is not None:
            p.addcmul_(p, slope.square_(), value=-1.0)
        return loss, p.to(h.dtype)


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
