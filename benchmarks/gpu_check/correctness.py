"""Whether the GPU computes what a CPU computes, goes on exactly from a checkpoint, and answers alike with a cache."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bafogpt.model.generate import Sampling, generate
from bafogpt.model.gpt import GPT, empty_gpt, materialise, new_gpt
from bafogpt.model.loss import IGNORE, liger_kernel
from bafogpt.train import batches, parallel
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.learner import Learner
from bafogpt.train.step import train_step
from bafogpt.train.trainer_io import TrainerFiles
from benchmarks.gpu_check.learners import learner_of
from benchmarks.gpu_check.models import (
    SMALL,
    clean,
    config_of,
    difference,
    fill,
    peaks,
    random_rows,
    shape_of,
    sync,
    vocabulary,
)
from benchmarks.gpu_check.report import Report

IDS = 512
LOGITS, LOSS, GRADIENT = "logits", "loss", "gradient"
TOLERANCES = {
    torch.float32: {LOGITS: 1e-4, LOSS: 1e-5, GRADIENT: 1e-3},
    torch.bfloat16: {LOGITS: 3e-2, LOSS: 5e-4, GRADIENT: 5e-2},
}
"""Largest relative difference from a CPU in float32, in the 2-norm; of gradients that of the worst parameter. A CPU in
bfloat16 differs by 1e-2, 1e-4 and 1.5e-2."""
ALIKE = 0.9
"""Share of an answer in bf16 that must be the most probable token without a cache, too; in float32 it is 1."""


def equal(report: Report) -> None:
    """Logits, loss and gradients against a CPU in float32: plain and packed, float32, and bf16 compiled or not."""
    report.say_device()
    if not report.tiny:
        liger_kernel()
    tokens = 60 if report.tiny else 200  # no multiples of a kernel's block
    ids = torch.randint(0, IDS, (2, tokens), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[:, ::7] = IGNORE
    packed = (torch.arange(tokens) * 3 // tokens).int().expand(2, -1).contiguous()
    for documents in (None, packed):
        wanted = _computed(_network(report, "never", torch.float32, torch.device("cpu")), ids, targets, documents)
        for dtype, tolerances in TOLERANCES.items():
            for mode in ("never",) if report.tiny or dtype == torch.float32 else ("never", "always"):
                kind = (
                    f"{str(dtype).removeprefix('torch.')}, {'plain' if documents is None else 'packed'}, compile {mode}"
                )
                with report.case(kind):
                    clean(report)
                    network = _network(report, mode, dtype, report.device)
                    got = _computed(network, ids, targets, documents)
                    found = _compared(got, wanted)
                    report.note(kind, found, ok=all(found[name] <= limit for name, limit in tolerances.items()))


def _network(report: Report, mode: str, dtype: torch.dtype, device: torch.device) -> GPT:
    config = config_of(
        report, micro_batch=1, samples=1, model={"overrides": SMALL}, compile=mode, activation_checkpointing="none"
    )
    network = new_gpt(shape_of(config, IDS), tie_embeddings=True, seed=1)
    network.to(device, dtype)
    parallel.prepare_blocks(network, config, gpu=device.type == "cuda")
    return network


def _computed(
    network: GPT, ids: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Logits, loss, and the gradient of each parameter by its name, on the CPU."""
    device = network.lm_head.weight.device
    ids, targets = ids.to(device), targets.to(device)
    documents = None if documents is None else documents.to(device)
    logits = network(ids, documents=documents).detach()  # with gradients: what is compiled serves the loss, too
    loss = network(ids, targets, documents=documents)
    loss.backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in network.named_parameters()}
    return {LOGITS: logits.cpu(), LOSS: loss.detach().cpu(), **gradients}


def _compared(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, Any]:
    each = {name: difference(got[name], value) for name, value in wanted.items()}
    worst = max((name for name in each if name not in (LOGITS, LOSS)), key=lambda name: each[name])
    return {LOGITS: each[LOGITS], LOSS: each[LOSS], GRADIENT: each[worst], "worst": worst}


def resume(report: Report) -> None:
    """Two steps, a checkpoint, the third step; and the third step again from the checkpoint: the same bits.

    A loss that random tokens of 512 cannot have is red, too: a device that computes nothing repeats itself.
    """
    report.say_device()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    for deterministic in (False, True):
        kind = "deterministic" if deterministic else "as jobs run"
        with report.case(kind), tempfile.TemporaryDirectory(prefix="gpu-check-resume-") as name:
            _resume(report, kind, Path(name), deterministic)


def _resume(report: Report, kind: str, folder: Path, deterministic: bool) -> None:
    trainer_files = TrainerFiles(folder)
    trainer_files.checkpoints.mkdir(parents=True)
    rows = random_rows(report, IDS, 6, np.random.default_rng(3), documents=3)
    config = config_of(
        report,
        micro_batch=1,
        samples=2,
        model={"overrides": SMALL},
        deterministic=deterministic,
        precision="bf16-mixed",
    )

    def learner() -> Learner:
        return learner_of(report, config, ids=IDS, kind="autocast", filled=False)

    def step(of: Learner, number: int) -> torch.Tensor:
        pair = rows[2 * number : 2 * number + 2]
        return train_step(of, [batches.make_batch([each], report.device) for each in pair]).loss

    one = learner()
    step(one, 0)
    step(one, 1)
    checkpointer = Checkpointer(trainer_files, config.checkpoint)
    sync(report)
    began = time.perf_counter()
    checkpointer.save(one.state)
    stall = time.perf_counter() - began
    loss = step(one, 2)
    checkpointer.wait()
    two = learner()
    two.state.load(trainer_files.pending()[0])
    again = step(two, 2)
    pairs = list(zip(one.trained, two.trained, strict=True))
    unequal = sum(not torch.equal(a, b) for a, b in pairs)
    found = {
        "loss": float(loss),
        "loss_again": float(again),
        "unequal_parameters": unequal,
        "difference": max(difference(b, a) for a, b in pairs),
        "stall_ms": stall * 1e3,
        "fused": bool(two.state.optimizer.param_groups[0]["fused"]),
    }
    report.note(kind, found, ok=unequal == 0 and bool(loss == again) and 1 < float(loss) < 10)


def answers(report: Report) -> None:
    """An answer with the cache against a CPU's, and against the same network without the cache; tokens a second."""
    report.say_device()
    with report.case("small, float32"):
        config = config_of(report, micro_batch=1, samples=1, model={"overrides": SMALL})
        model = new_gpt(shape_of(config, IDS), tie_embeddings=True, seed=1).eval()
        wanted, _, _ = _answer(model, list(range(40)), 24)
        said, share, _ = _answer(model.to(report.device), list(range(40)), 24)
        found = {"as_on_cpu": said == wanted, "alike": share}
        report.note("small, float32", found, ok=said == wanted and share == 1)
    with report.case("large, bf16"):
        clean(report)
        config = config_of(report, micro_batch=1, samples=1)
        model = empty_gpt(shape_of(config, vocabulary(report)), tie_embeddings=True).to(torch.bfloat16).eval()
        materialise(model, report.device)
        fill(model)
        prompt = list(range(5, 5 + (8 if report.tiny else 700)))
        _, share, speed = _answer(model, prompt, 8 if report.tiny else 64)
        report.note("large, bf16", {"alike": share, "tokens_per_s": speed, **peaks(report)}, ok=share >= ALIKE)


def _answer(model: GPT, prompt: list[int], count: int) -> tuple[list[int], float, float]:
    """A greedy answer, the share of it that is the most probable token without a cache, too, and tokens a second."""
    greedy = Sampling(temperature=0)
    list(generate(model, prompt, max_tokens=2, sampling=greedy))
    began = time.perf_counter()
    said = list(generate(model, prompt, max_tokens=count, sampling=greedy))
    speed = count / (time.perf_counter() - began)
    with torch.no_grad():
        ids = torch.tensor([prompt + said[:-1]], device=model.lm_head.weight.device)
        logits = model(ids)[0, len(prompt) - 1 :].float()
    return said, float((logits.argmax(-1).cpu() == torch.tensor(said)).float().mean()), speed
