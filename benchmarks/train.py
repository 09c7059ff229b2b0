"""``./scripts/bench train``: the trainer's step against ``litgpt pretrain``'s and Hugging Face's Trainer's, on CPU.

One small Gemma-2 with the same sizes in all three, tied, float32, one thread, the same random samples. Ours is the real
:func:`bafogpt.train.step.train_step`; litgpt's is what ``litgpt.pretrain.fit`` does, without the ``torch.compile`` that
takes a minute on a CPU; Hugging Face's what ``Trainer`` does, through ``accelerate``'s clipping and its own loss.
Reading data, logs and checkpoints are left out for all. The three take turns in every round, and what is reported is
the median of the ratios within a round, so that a busy machine slows all of them.

Then the stall of a checkpoint: how long the loop waits in the real
:class:`~bafogpt.train.checkpointer.Checkpointer`, while training goes on between saves, as a share of a minute. The
writing thread also takes time of the processor."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "n_layer": 4,
    "n_embd": 256,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 64,
    "intermediate_size": 1024,
    "sliding_window_size": 128,
}
VOCABULARY, BATCH, TOKENS = 16_384, 4, 256
RATE, DECAY, BETAS = 2e-4, 0.1, (0.9, 0.95)
Step = Callable[[torch.Tensor], None]


def ours() -> tuple[Step, Any]:
    """The trainer's own step in one process, and the learner that it works on."""
    from lightning.fabric import Fabric

    from bafogpt.core import schema
    from bafogpt.model.config import gpt_config
    from bafogpt.train import batches
    from bafogpt.train.config import TrainConfig
    from bafogpt.train.learner import build_learner
    from bafogpt.train.step import train_step

    values = {
        "tokens": 10**9,
        "data": {"path": "x", "sequence_length": TOKENS},
        "batch": {"tokens": BATCH * TOKENS, "micro_batch_size": BATCH},
        "precision": "32-true",
        "activation_checkpointing": "none",
    }
    config = schema.build_learner(TrainConfig, values, where="bench")
    fabric = Fabric(accelerator="cpu", devices=1)
    shape = gpt_config("Gemma-2-2b", SIZES, VOCABULARY)
    identity = {"data": "", "sequence_length": 0}
    learner = build_learner(config, shape, fabric, sharding="step", identity=identity, empty=False)

    def step(tokens: torch.Tensor) -> None:
        batch = batches.make_batch([batches.SampleRow(row) for row in tokens.numpy()], fabric.device)
        train_step(learner, [batch])

    return step, learner


def litgpt() -> Step:
    """One iteration of ``litgpt.pretrain.fit`` with its model and its loss."""
    from lightning.fabric import Fabric
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    fabric = Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(1)
    layers = [1 - layer % 2 for layer in range(SIZES["n_layer"])]
    sizes = {**SIZES, "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY, "sliding_window_indices": layers}
    model = GPT(Config.from_name("Gemma-2-2b", **sizes))
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS)
    model, optimizer = fabric.setup(model, optimizer)

    def step(tokens: torch.Tensor) -> None:
        logits = model(tokens[:, :-1].contiguous().long())
        fabric.backward(chunked_cross_entropy(logits, tokens[:, 1:].contiguous().long()))
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def huggingface() -> Step:
    """One step of ``transformers.Trainer``: its model with its loss, accelerate's backward and clipping."""
    from accelerate import Accelerator
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(1)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=SIZES["n_embd"],
        intermediate_size=SIZES["intermediate_size"],
        num_hidden_layers=SIZES["n_layer"],
        num_attention_heads=SIZES["n_head"],
        num_key_value_heads=SIZES["n_query_groups"],
        head_dim=SIZES["head_size"],
        sliding_window=SIZES["sliding_window_size"],
        max_position_embeddings=8192,
        attn_implementation="eager",
        use_cache=False,
    )
    accelerator = Accelerator(cpu=True)
    model = Gemma2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS)
    model, optimizer = accelerator.prepare(model, optimizer)

    def step(tokens: torch.Tensor) -> None:
        ids = tokens[:, :-1].contiguous().long()
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def race(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, in turns; the first round warms up."""
    chance = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        tokens = torch.randint(0, VOCABULARY, (BATCH, TOKENS + 1), generator=chance, dtype=torch.int32)
        for name, step in steps.items():
            began = time.perf_counter()
            step(tokens)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def stall(step: Step, run: Any, saves: int) -> tuple[float, float]:
    """(median seconds that the loop waits for a save, MB saved), steps between saves as in training."""
    from bafogpt.train.checkpointer import Checkpointer
    from bafogpt.train.config import CheckpointConfig
    from bafogpt.train.trainer_io import TrainerFiles

    tokens = torch.randint(0, VOCABULARY, (BATCH, TOKENS + 1), dtype=torch.int32)
    with tempfile.TemporaryDirectory(prefix="bafogpt-train-") as folder:
        trainer_files = TrainerFiles(Path(folder))
        trainer_files.checkpoints.mkdir(parents=True)
        checkpointer, waited = Checkpointer(trainer_files, CheckpointConfig()), []
        for _ in range(saves + 1):
            began = time.perf_counter()
            checkpointer.save(run.state)
            waited.append(time.perf_counter() - began)
            while not trainer_files.pending():  # a minute of training, cut to what the writing takes
                step(tokens)
            trainer_files.drop(trainer_files.pending()[0])
        checkpointer.wait()
    megabytes = sum(each.numel() * each.element_size() for each in run.state.tensors().values()) / 1e6
    return statistics.median(waited[1:]), megabytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    own, run = ours()
    seconds = race({"bafogpt": own, "litgpt": litgpt(), "Hugging Face": huggingface()}, options.rounds)
    print("| trainer | s a step | tokens/s | bafogpt's tokens/s against it |")
    print("|---|---:|---:|---:|")
    for name, taken in seconds.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(taken, seconds["bafogpt"], strict=True))
        middle = statistics.median(taken)
        print(f"| {name} | {middle:.2f} | {BATCH * TOKENS / middle:,.0f} | {ratio:.2f} |")
    waited, megabytes = stall(own, run, options.saves)
    print(f"\nstall of a checkpoint of {megabytes:.0f} MB: {waited:.3f} s, {waited / 60:.2%} of a minute")


if __name__ == "__main__":
    main()
