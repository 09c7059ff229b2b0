"""Whether a model and its batches fit: what is refused before it dies, and the micro-batch that is found."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.config import Config

from bafogpt.core.errors import ConfigError
from bafogpt.storage.tokens.manifest import Packing
from bafogpt.train import memory, parallel
from bafogpt.train.config import TrainConfig


def check_length(model: Config, config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where a sample is longer than the positions that a model knows."""
    length = config.data.sequence_length
    if length > model.block_size:
        raise ConfigError(
            f"data.sequence_length is {length}, and {config.model.name} knows {model.block_size} positions",
            f"--set train.data.sequence_length={model.block_size}",
        )


def check_packing(packing: Packing | None, config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where a dataset was packed into samples of another length than the job's."""
    if packing is not None and packing.sequence_length != config.data.sequence_length:
        raise ConfigError(
            f"{config.data.path} was packed into samples of {packing.sequence_length} tokens, and "
            f"data.sequence_length is {config.data.sequence_length}",
            f"--set train.data.sequence_length={packing.sequence_length}",
        )


def plan(model: Config, config: TrainConfig, *, gpu: bool) -> tuple[int, bool]:
    """(micro-batch, whether to reshard after forward) that the memory model expects to fit this process's device.

    Raises :class:`ConfigError`, with the numbers, where nothing does, or not the micro-batch that is set.
    """
    device = torch.device("cuda", parallel.local_rank()) if gpu else torch.device("cpu")
    available, processes = parallel.device_bytes(device), parallel.world_size()
    tied = config.model.tie_embeddings
    micro, reshard = memory.choose(model, config, processes=processes, gpu=gpu, memory=available, tied=tied)
    if micro:
        return micro, reshard
    wanted = max(1, config.batch.micro)
    need = memory.need(model, config, micro=wanted, processes=processes, gpu=gpu, reshard=True, tied=tied)
    hint = "more processes, train.activation_checkpointing=full, or a shorter train.data.sequence_length"
    if wanted > 1:
        hint = "--set train.batch.micro=0 finds the largest that fits"
    raise ConfigError(
        f"a micro-batch of {wanted} needs some {need.total / 1e9:.1f} GB a process (state {need.state / 1e9:.1f}, "
        f"activations {need.activations / 1e9:.1f}), and {available / 1e9:.1f} GB are there",
        hint,
    )


def tried(model: Any, fabric: Fabric, config: TrainConfig, micro: int) -> int:
    """The largest power-of-two part of ``micro`` that goes forward and backward on every process's GPU.

    The model of the memory is only a model. Gradients are thrown away; nothing else is changed.
    Raises :class:`ConfigError` where not even one sample does.
    """
    while micro:
        ids = torch.zeros(micro, config.data.sequence_length, dtype=torch.int64, device=fabric.device)
        failed = False
        try:
            fabric.backward(model(ids, ids))
        except torch.OutOfMemoryError:
            failed = True
        model.zero_grad(set_to_none=True)
        if not parallel.any_process(failed):
            return micro
        torch.cuda.empty_cache()
        micro //= 2
    raise ConfigError("not even one sample fits this GPU", "--set train.activation_checkpointing=full")
