"""``./scripts/bench gpu``: what a GPU makes of Gemma-2-2B with a vocabulary of 296,000: tokens/s, MFU, memory.

Random weights and random tokens, the trainer's own step in one process, blocks compiled, each micro-batch in turn until
one does not fit. A GPU of 48 GB does not hold the float32 state of 2.7 G parameters alone: ``--layers`` cuts the model,
and MFU is of the model that ran. Last comes a projection to 4×L40, with its formula; it is no measurement.

``--dry-run`` runs all of it on a CPU with a tiny model, to see that the command works.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bafogpt.core import schema
from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import new_gpt
from bafogpt.train import batches, fit, flops, gpus, memory, metrics, parallel
from bafogpt.train.config import TrainConfig
from bafogpt.train.handoff import Order
from bafogpt.train.optimizer import NewRows, adamw
from bafogpt.train.state import TrainState
from bafogpt.train.step import train_step

TINY = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_query_groups": 1, "head_size": 32, "intermediate_size": 128}
L40_DOLLARS = 4.56
"""An hour of four of them at RunPod, as jobs/pretrain.yaml has it."""


def make_config(options: argparse.Namespace, micro: int) -> TrainConfig:
    """Two micro-batches a step, so that accumulation is part of what is measured."""
    overrides = TINY if options.dry_run else {"n_layer": options.layers}
    values = {
        "tokens": 10**12,
        "data": {"path": "random", "sequence_length": options.length},
        "model": {"overrides": overrides},
        "batch": {"tokens": 2 * micro * options.length, "micro": micro},
        "precision": "32-true" if options.dry_run else options.precision,
        "activation_checkpointing": options.recompute,
    }
    return schema.build(TrainConfig, values, where="bench")


def measure(options: argparse.Namespace, micro: int) -> dict[str, Any]:
    """One micro-batch: a row of the table. ``error`` where it does not fit."""
    config = make_config(options, micro)
    gpu = not options.dry_run
    shape = gpt_config("Gemma-2-2b", config.model.overrides, 512 if options.dry_run else 296_000)
    row: dict[str, Any] = {"micro": micro}
    order = Order(job="bench", bucket="", config=config, device="cuda" if gpu else "cpu")
    try:
        fit.plan(shape, config, gpu=gpu)
        fabric = parallel.make_fabric(order, reshard_after_forward=False)
        gpt = new_gpt(shape, tie_embeddings=True, seed=1)
        parallel.prepare_blocks(gpt, config, gpu=gpu)
        model = fabric.setup_module(gpt)
        trained = list(gpt.parameters())
        state = TrainState(gpt, adamw(gpt, config.optimizer, fused=gpu), {})
        new_rows = NewRows(trained, vocabulary=0, first=0, factor=1.0)
        parts = {"config": config, "fabric": fabric, "model": model, "trained": trained, "state": state}
        run: Any = SimpleNamespace(**parts, new_rows=new_rows, every_token=True)
        speed = tokens_per_s(run, shape.vocab_size, options.steps)
    except Exception as error:  # out of memory has several classes; the table says what it was
        return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    cost = flops.flops_per_token(shape, options.length)
    need = memory.need(shape, config, micro=micro, processes=1, gpu=gpu, reshard=False)
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    return row | {
        "tokens_per_s": speed,
        "mfu": speed * cost / metrics.peak_flops(fabric.device),
        "memory_gb": peak / 1e9,
        "expected_gb": need.total / 1e9,
    }


def tokens_per_s(run: Any, vocabulary: int, steps: int) -> float:
    """Of ``steps`` steps after three that warm up and compile."""
    config, device = run.config, run.fabric.device
    chance = torch.Generator().manual_seed(1)

    def step() -> torch.Tensor:
        shape = (config.batch.micro, config.data.sequence_length + 1)
        rows = [torch.randint(0, vocabulary, shape, generator=chance).numpy() for _ in range(2)]
        micros = [batches.of_rows([batches.Row(tokens) for tokens in each], device) for each in rows]
        return train_step(run, micros).loss

    for _ in range(3):
        step().item()
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.item()  # the wait for the device
    return steps * config.batch.tokens / (time.perf_counter() - began)


def projection(mfu: float, length: int = 2048) -> str:
    """What that MFU would be on 4×L40 with the whole model, in words."""
    cost = flops.flops_per_token(gpt_config("Gemma-2-2b", {}, 296_000), length)
    peak = next(gpu.bf16 for gpu in gpus.GPUS if gpu.name == "L40")
    speed = mfu * 4 * peak / cost
    hours = 200e6 / speed / 3600
    return (
        f"projected for L40:4, not measured: tokens/s = MFU x 4 x 181e12 / {cost:.3g} FLOP a token;\n"
        f"at {mfu:.1%} {speed:,.0f} tokens/s, 200 M tokens in {hours:.1f} h for {hours * L40_DOLLARS:.0f} $. "
        "The exchange between GPUs is not in it."
    )


def main() -> None:
    """Measure each micro-batch and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--micro", default="1,2,4,8")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--recompute", default="full")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.dry_run:
        options.length, options.steps = 32, 2
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry-run runs a tiny model on the CPU")
    rows = []
    print("| micro-batch | tokens/s | MFU | peak GB | expected GB |\n|---:|---:|---:|---:|---:|")
    for micro in map(int, options.micro.split(",")):
        if not options.dry_run:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row = measure(options, micro)
        rows.append(row)
        if "error" in row:
            print(f"| {micro} | {row['error']} | | | |")
        else:
            cells = (row["tokens_per_s"], row["mfu"], row["memory_gb"], row["expected_gb"])
            print("| {} | {:,.0f} | {:.1%} | {:.1f} | {:.1f} |".format(micro, *cells), flush=True)
    best = max((row["mfu"] for row in rows if "mfu" in row), default=None)
    if best is not None:
        print("\n" + ("a dry run's MFU says nothing about a GPU; " if options.dry_run else "") + projection(best))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
