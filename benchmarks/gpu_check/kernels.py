"""The kernels by themselves: attention forward and backward with every block size, and the fused loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from bafogpt.model import attention, loss_chunks
from bafogpt.model import flex as flexes
from bafogpt.model import loss as losses
from benchmarks.gpu_check.models import WIDTH, clean, difference, peaks, timed_ms, vocabulary
from benchmarks.gpu_check.report import Report

CASES = (
    ("2,048 tokens", 2048, None, False),
    ("2,048 tokens, documents", 2048, None, True),
    ("300 tokens", 300, None, False),
    ("300 tokens, documents, window of 100", 300, 100, True),
    ("6,144 tokens, window of 4,096", 6144, 4096, False),
)
"""(name, T, window, documents)."""
HEADS, GROUPS, SIZE = 8, 4, 256
"""Of Gemma-2-2B."""
ATTENTION = 2e-2
"""Largest relative difference of attention and its gradients in bf16 from float32; one rounding is 4e-3 at most."""
CHUNKS_MB = (64, 320, 640, 1280)
LOSS, GRADIENTS = 1e-3, 2e-2
"""The same of the loss and of its gradients. In bf16 the gradients were 0.6 to 0.9 % off by Triton's interpreter."""

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def flex(report: Report) -> None:
    """flex_attention, as the trainer calls it, against the eager attention in float32; then its block sizes."""
    report.say_device()
    cases = (("64 tokens, documents, window of 16", 64, 16, True),) if report.tiny else CASES
    for name, tokens, window, packed in cases:
        with report.case(name):
            torch._dynamo.reset()
            found, ok = _against_eager(report, tokens, window, packed)
            report.note(name, found, ok=ok)
    if not report.tiny:
        _block_sizes(report)


def _inputs(report: Report, tokens: int) -> Inputs:
    """Query, key and value; without gradients on a CPU, where flex_attention has no backward pass."""
    kind = torch.float32 if report.tiny else torch.bfloat16
    torch.manual_seed(1)
    batch = 1 if tokens > 4000 else 2
    q, k, v = (
        torch.randn(batch, heads, tokens, SIZE, device=report.device, dtype=kind).requires_grad_(not report.tiny)
        for heads in (HEADS, GROUPS, GROUPS)
    )
    return q, k, v


def _attend(inputs: Inputs, mask: Any) -> torch.Tensor:
    return attention.attend(*inputs, mask, scale=0.0625, softcap=50.0)


def _both(inputs: Inputs, mask: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Result and gradients."""
    result = _attend(inputs, mask)
    if not result.requires_grad:
        return (result,)
    return (result, *torch.autograd.grad(result, inputs, gradient))


def _against_eager(report: Report, tokens: int, window: int | None, packed: bool) -> tuple[dict[str, Any], bool]:
    inputs = _inputs(report, tokens)
    documents = None
    if packed:
        numbers = (torch.arange(tokens, device=report.device) // 100).int()
        documents = numbers.expand(len(inputs[0]), -1).contiguous()
    mask = flexes.flex_mask(tokens, window, documents=documents, device=report.device)
    eager = attention.hidden_keys(tokens, 0, window, documents, report.device)
    gradient = torch.randn_like(inputs[0])
    q, k, v = (each.detach().float().requires_grad_(each.requires_grad) for each in inputs)
    wanted = _both((q, k, v), eager, gradient.float())
    got = _both(inputs, mask, gradient)
    each = [difference(a.cpu(), b.cpu()) for a, b in zip(got, wanted, strict=True)]
    found: dict[str, Any] = {"forward": each[0], "gradients": each[1:]}
    if not report.tiny:
        spent = timed_ms(report, lambda: _both(inputs, mask, gradient))
        found |= {
            "ms": spent,
            "eager_ms": timed_ms(report, lambda: _both(inputs, eager, gradient), times=3, warm=1),
            "tflops_unmasked_half": _operations(inputs[0]) / spent / 1e9,
        }
    return found, max(each) <= ATTENTION


def _operations(q: torch.Tensor) -> float:
    """Of causal attention without a window, 2 products forward and 5 backward."""
    batch, heads, tokens, size = q.shape
    return 7 * 2 * batch * heads * size * tokens**2 / 2


def _block_sizes(report: Report) -> None:
    """Milliseconds with every block size that fits the card, forward and then backward, and with the chosen one."""
    inputs = _inputs(report, 2048)
    mask = flexes.flex_mask(2048, None, documents=None, device=report.device)
    gradient = torch.randn_like(inputs[0])
    shared = flexes.shared_memory(0)
    chosen = flexes.block_sizes(SIZE, inputs[0].element_size(), shared)

    def forward_only() -> torch.Tensor:
        with torch.no_grad():
            return _attend(inputs, mask)

    spent: dict[str, dict[str, float]] = {"forward": {}, "both": {}}
    for name, work in (("forward", forward_only), ("both", lambda: _both(inputs, mask, gradient))):
        for sizes in (chosen, None, *_options(name, inputs[0].element_size(), shared)):
            label = _label(name, sizes)
            if label in spent[name] or report.left() < 15:
                continue
            with report.case(f"{name}, {label}"), _forced(sizes):
                spent[name][label] = timed_ms(report, work, times=10)
        if spent[name]:
            fastest = min(spent[name], key=lambda label: spent[name][label])
            found = {"ms": spent[name], "chosen": _label(name, chosen), "fastest": fastest}
            report.note(f"block sizes, {name}", found)


def _options(name: str, item: int, shared: int) -> Iterator[tuple[int, ...]]:
    """Values of :data:`flexes.OPTIONS` to try: other forward or other backward blocks, with 4 warps and with 8."""
    row = SIZE * item
    if name == "forward":
        for m, n, stages in flexes.FORWARD[:3]:
            if flexes.forward_bytes(row, item, m, n, stages) <= shared:
                yield from ((m, n, stages, warps, *_backward(32, 32, 2, 4)) for warps in (4, 8))
    for m, n, stages in flexes.BACKWARD[:3] if name == "both" else ():
        if flexes.backward_bytes(row, item, m, n, stages) <= shared:
            yield from ((64, 32, 2, 4, *_backward(m, n, stages, warps)) for warps in (4, 8))


def _backward(m: int, n: int, stages: int, warps: int) -> tuple[int, ...]:
    return (m, n, n, m, stages, warps)


def _label(name: str, sizes: tuple[int, ...] | None) -> str:
    if sizes is None:
        return "Inductor's own"
    m, n, stages, warps = sizes[:4] if name == "forward" else (sizes[4], sizes[5], *sizes[8:])
    return f"{m} × {n}, {stages} stages, {warps} warps"


@contextmanager
def _forced(sizes: tuple[int, ...] | None) -> Iterator[None]:
    """flex_attention compiled anew with these block sizes."""
    torch._dynamo.reset()
    with mock.patch.object(flexes, "_block_sizes_of", lambda *_: sizes):
        yield
    torch._dynamo.reset()


def loss(report: Report) -> None:
    """The fused loss and its gradients against float32: Liger's kernel and plain PyTorch, several sizes of chunk.

    The reference is computed on the same device, so its value is checked, too: random logits cost some log V nats.
    """
    report.say_device()
    rows, width, kind = (64, 64, torch.float32) if report.tiny else (8192, WIDTH, torch.bfloat16)
    ids = vocabulary(report)
    torch.manual_seed(1)
    hidden = torch.randn(rows, width, device=report.device, dtype=kind).requires_grad_()
    weight = (torch.randn(ids, width, device=report.device, dtype=kind) * 0.02).requires_grad_()
    targets = torch.randint(0, ids, (rows,), device=report.device)
    targets[::9] = losses.IGNORE

    def both(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = losses.linear_cross_entropy(h, w, targets, softcap=30.0, z_loss=1e-4)
        return (value.detach(), *torch.autograd.grad(value / 7, (h, w)))

    with _plain():
        wanted = both(*(each.detach().float().requires_grad_() for each in (hidden, weight)))
    nats = float(wanted[0]) / (rows - len(range(0, rows, 9)))
    report.note("nats a target", nats, ok=abs(nats - math.log(ids)) < 2)
    work = functools.partial(both, hidden, weight)
    for megabytes in CHUNKS_MB:
        for name, how in _ways(report).items():
            label = f"{name}, chunks of {megabytes} MiB"
            if report.left() < 10:
                report.note(label, "no time left")
                continue
            with report.case(label), how(), _budget(megabytes << 20):
                found, ok = _measured(report, work, wanted)
                report.note(label, found, ok=ok)


def _measured(
    report: Report, work: Callable[[], tuple[torch.Tensor, ...]], wanted: tuple[torch.Tensor, ...]
) -> tuple[dict[str, Any], bool]:
    clean(report)
    before = peaks(report)
    got = work()
    taken = {name: after - before[name] for name, after in peaks(report).items()}
    each = [difference(a, b) for a, b in zip(got, wanted, strict=True)]
    del got
    found = {"loss": each[0], "gradients": each[1:], **taken, "ms": timed_ms(report, work, times=3, warm=1)}
    return found, each[0] <= LOSS and max(each[1:]) <= GRADIENTS


def _ways(report: Report) -> dict[str, Any]:
    def as_is() -> Any:
        return mock.patch.object(losses, "liger_kernel", losses.liger_kernel)

    if report.device.type == "cuda" and losses.liger_kernel() is not None:
        return {"Liger": as_is, "plain PyTorch": _plain}
    return {"plain PyTorch": _plain}


def _plain() -> Any:
    return mock.patch.object(losses, "liger_kernel", lambda: None)


@contextmanager
def _budget(size: int) -> Iterator[None]:
    """Chunks of ``size`` bytes; on a CPU of a 2,000th of it, because toys are small."""
    with mock.patch.multiple(loss_chunks, GPU_BYTES=size, CPU_BYTES=size // 2000):
        yield
