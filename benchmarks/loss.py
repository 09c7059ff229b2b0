"""``./scripts/bench loss``: peak memory and time of the fused loss, against all logits at once.

Forward and backward pass of output head, soft-cap and cross-entropy, float32, on random numbers. Each measurement is a
process of its own, the two in turns. ``memory`` is the peak of the resident set above what it was with the inputs and
with both gradients in place, which either way must have; ``whole`` counts these as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def once(kind: str, vocabulary: int, tokens: int, width: int) -> None:
    """Measure one kind in this process and print the figures as JSON."""
    import torch

    from bafogpt.model.loss import linear_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).requires_grad_()
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    inputs = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    if kind == "fused":
        loss = linear_cross_entropy(hidden, weight, targets, softcap=30.0)
    else:
        logits = torch.tanh(hidden @ weight.mT / 30.0) * 30.0
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss.backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gradients = (hidden.numel() + weight.numel()) * 4
    assert hidden.grad is not None
    assert weight.grad is not None
    check = [loss.item(), hidden.grad.norm().item(), weight.grad.norm().item()]
    print(json.dumps({"seconds": seconds, "whole": peak - inputs, "memory": peak - inputs - gradients, "check": check}))


def measured(kind: str, *sizes: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--once", kind, *map(str, sizes)]
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=296_000)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--width", type=int, default=2_304)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    sizes = (options.vocabulary, options.tokens, options.width)
    turns = []
    for _ in range(options.repeat):
        turn = {kind: measured(kind, *sizes) for kind in ("naive", "fused")}
        print(json.dumps(turn), flush=True)
        for ours, theirs in zip(turn["fused"]["check"], turn["naive"]["check"], strict=True):  # type: ignore[call-overload]
            assert abs(ours - theirs) <= 1e-5 * abs(theirs), "the two do not compute the same"
        turns.append(turn)
    print("| | naive, median | fused, median | ratio, median |\n|---|---:|---:|---:|")
    for key, unit, label in (
        ("memory", 1e9, "memory beyond inputs and gradients, GB"),
        ("whole", 1e9, "with gradients, GB"),
        ("seconds", 1, "time, s"),
    ):
        naive, fused = ([float(turn[kind][key]) / unit for turn in turns] for kind in ("naive", "fused"))  # type: ignore[arg-type]
        ratio = statistics.median(b / a for a, b in zip(naive, fused, strict=True))
        print(f"| {label} | {statistics.median(naive):.2f} | {statistics.median(fused):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
