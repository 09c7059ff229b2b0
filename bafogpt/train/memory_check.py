"""Checks that model and batches fit the device, and the largest micro-batch that does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import torch
from litgpt.config import Config

from bafogpt.core import process, schema
from bafogpt.core.errors import BafoError, ConfigError
from bafogpt.model import flex
from bafogpt.storage.tokens.manifest import Packing
from bafogpt.train import parallel
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.estimates import memory
from bafogpt.train.probes import step_probe


def check_length(model: Config, config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where samples are longer than the model's positions."""
    length = config.data.sequence_length
    if length > model.block_size:
        raise ConfigError(
            f"data.sequence_length is {length}, and {model.name or 'the model'} knows {model.block_size} positions",
            f"--set train.data.sequence_length={model.block_size}",
        )


def check_packing(packing: Packing | None, config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where the dataset was packed into samples of another length."""
    if packing is not None and packing.sequence_length != config.data.sequence_length:
        raise ConfigError(
            f"{config.data.path} was packed into samples of {packing.sequence_length} tokens, and "
            f"data.sequence_length is {config.data.sequence_length}",
            f"--set train.data.sequence_length={packing.sequence_length}",
        )


def choose_micro_batch(model: Config, config: TrainConfig, *, gpu: bool) -> tuple[int, Sharding]:
    """(micro-batch, sharding) that is expected to fit this process's device.

    Raises :class:`ConfigError`, with the estimate, where nothing fits, or the micro-batch that is set does not.
    """
    device = torch.device("cuda", parallel.local_rank()) if gpu else torch.device("cpu")
    available, processes = parallel.device_bytes(device), parallel.world_size()
    micro_batch, sharding = memory.choose_micro_batch(model, config, processes=processes, gpu=gpu, memory=available)
    if micro_batch:
        return micro_batch, sharding
    wanted = max(1, config.batch.micro_batch_size)
    need = memory.estimate(model, config, micro_batch=wanted, processes=processes, gpu=gpu, sharding=sharding)
    hint = "train.activation_checkpointing=full, train.sharding=full, more processes, or a shorter sequence_length"
    if wanted > 1:
        hint = "--set train.batch.micro_batch_size=0 finds the largest that fits"
    raise ConfigError(
        f"a micro-batch of {wanted} needs some {need.total / 1e9:.1f} GB a process (state {need.state / 1e9:.1f}, "
        f"activations {need.activations / 1e9:.1f}), and {available / 1e9:.1f} GB are there",
        hint,
    )


def check_attention(model: Config, config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where attention's kernels do not fit this process's GPU."""
    itemsize = 4 if config.precision == "32-true" else 2
    flex.block_sizes(model.head_size or 0, itemsize, flex.shared_memory(parallel.local_rank()))


def probe_micro_batch(
    model: Config, config: TrainConfig, *, micro_batch: int, sharding: Sharding, documents: bool
) -> int:
    """The largest of ``micro_batch``, ``micro_batch`` / 2, … of which whole steps fit this machine's GPUs.

    The machine's first process tries each on its own GPU, in a new process (:mod:`bafogpt.train.probes.step_probe`);
    the others return ``micro_batch``, so the caller takes the minimum over all processes. Raises :class:`ConfigError`
    where not even one sample fits.
    """
    if parallel.local_rank():
        return micro_batch
    while micro_batch:
        trial = step_probe.Trial(
            config=config, network=asdict(model), micro_batch=micro_batch, sharding=sharding, documents=documents
        )
        if _probe(trial).fits:
            return micro_batch
        print(f"a micro-batch of {micro_batch} does not fit this GPU", flush=True)
        micro_batch //= 2
    raise ConfigError(
        "not even one sample fits this GPU",
        "--set train.activation_checkpointing=full --set train.sharding=full, or a GPU with more memory",
    )


def _probe(trial: step_probe.Trial) -> step_probe.Peak:
    done = subprocess.run(
        [sys.executable, "-m", "bafogpt.train.probes.step_probe"],
        input=json.dumps(asdict(trial)),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=process.die_with_parent(),
    )
    if done.returncode:
        raise BafoError("a trial step failed; its error is in the log above", "bafogpt cloud logs RUN")
    return schema.build(step_probe.Peak, json.loads(done.stdout.splitlines()[-1]), where="step_probe")
