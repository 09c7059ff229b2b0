"""``cloud finetune`` end to end: instructions in, one A10 on Slurm, and a merged model that answers out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.rented import TINY, LabClient

pytestmark = pytest.mark.slow

CONTEXT = 128
SHAPE = {"train.data.sequence_length": CONTEXT, "train.batch.tokens": 8 * CONTEXT, "train.batch.micro_batch_size": 4}


def sets(**over: object) -> list[str]:
    return [word for key, value in over.items() for word in ("--set", f"{key}={value}")]


def test_a_model_is_tuned_on_an_a10_of_the_cluster_merged_and_answers(
    slurm_client: LabClient, name: str, tmp_path: Path
) -> None:
    bafogpt, base = slurm_client.command, f"{name}-base"
    slurm_client.names.append(name)
    bafogpt("cloud", "launch", "pretrain", "--infra", "local", "--name", base, "--yes", *sets(**TINY))
    pack = ["--tokenizer", "bytes", "--style", "plain", "--context", str(CONTEXT), "--validation", "0.1"]
    bafogpt("data", "instructions", "starter", *pack, "--out", f"data/{name}")
    over = {**TINY, **SHAPE, "train.tokens": 12 * 8 * CONTEXT, "train.data.path": f"data/{name}"}
    over |= {"train.model.checkpoint": f"runs/{base}"}

    shown = bafogpt(
        *("cloud", "finetune", "--gpus", "A10", "--infra", "slurm", "--image", "none"),
        *("--name", name, "--yes", *sets(**over)),
    )

    assert "step     12/12" in shown.stderr and f"{name} succeeded" in shown.stdout
    record = json.loads(bafogpt("runs", "show", name, "--json").stdout)
    assert (record["state"], record["step"], record["gpus"]) == ("succeeded", 12, "A10:1")
    bafogpt("cloud", "down", name)

    merged = tmp_path / "merged"
    bafogpt("model", "export", name, "--merge", "--out", str(merged))
    words = ["--tokenizer", "bytes", "--prompt", "Sawubona", "--max-tokens", "8", "--temperature", "0"]
    answer = json.loads(bafogpt("generate", str(merged), *words, "--json").stdout.splitlines()[-1])
    assert answer["text"]
