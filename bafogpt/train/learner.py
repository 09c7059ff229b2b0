"""What a step changes: the network on its devices, its optimizer and their progress. Built once a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.config import Config

from bafogpt.model import lora, nf4
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.config import fingerprint
from bafogpt.model.gpt import GPT, empty_gpt, materialise, new_gpt
from bafogpt.model.loss import liger_kernel
from bafogpt.train import float8, optimizer, parallel
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.optimizer import NewTokenLR
from bafogpt.train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The objects of one process that :func:`bafogpt.train.step.train_step` works on."""

    config: TrainConfig
    fabric: Fabric
    sharding: Sharding
    model: Any
    """The network wrapped by Fabric, to be called; ``state.model`` is the one inside."""
    trained: list[torch.nn.Parameter]
    new_rows: NewTokenLR
    state: TrainState


def build_learner(
    config: TrainConfig,
    shape: Config,
    fabric: Fabric,
    *,
    sharding: Sharding,
    identity: dict[str, Any],
    empty: bool,
    load_base: Callable[[torch.nn.Module], object] | None = None,
) -> Learner:
    """The network of ``config`` with sizes ``shape``, sharded, with an optimizer that has no state yet.

    If ``empty``, parameters get memory but no values, and a sharded network never exists whole on a process; otherwise
    weights are random. ``load_base`` loads an adapter's base, before that is quantised and frozen. ``identity`` is what
    a checkpoint must agree with (``data``, ``sequence_length``); those of model, optimizer and adapter are added.
    """
    gpu, tied = fabric.device.type == "cuda", config.model.tied
    gpt = empty_gpt(shape, tie_embeddings=tied) if empty else new_gpt(shape, tie_embeddings=tied, seed=config.seed)
    gpt.max_seq_length = config.data.sequence_length  # positions that no sample has need no angles
    identity = {"model": fingerprint(shape, tied), "optimizer": config.optimizer.name, **identity}
    if config.adapter is not None:
        materialise(gpt, torch.device("cpu"))
        if load_base is not None:
            load_base(gpt)
        identity |= _add_adapter(gpt, shape, config, config.adapter)
    wrapped = _wrap(gpt, config, fabric, gpu=gpu)
    trained = [parameter for parameter in gpt.parameters() if parameter.requires_grad]
    return Learner(
        config=config,
        fabric=fabric,
        sharding=sharding,
        model=wrapped,
        trained=trained,
        new_rows=NewTokenLR(trained, config.optimizer, vocabulary=shape.padded_vocab_size),
        state=TrainState(gpt, optimizer.adamw(gpt, config.optimizer, fused=gpu), identity),
    )


def _wrap(gpt: GPT, config: TrainConfig, fabric: Fabric, *, gpu: bool) -> Any:
    """``gpt`` with its kernels, checkpointed and compiled blocks, on its devices."""
    if gpu:
        liger_kernel()
    float8.convert(gpt, config, gpu=gpu)
    parallel.prepare_blocks(gpt, config, gpu=gpu)
    if parallel.world_size() == 1:
        if config.precision == "bf16-true":
            gpt.to(torch.bfloat16)
        materialise(gpt, fabric.device)
    wrapped = fabric.setup_module(gpt)  # several processes shard first and allocate memory then
    gpt.reset_parameters()  # the angles of positions in float32 again: Fabric casts them under bf16-true
    return wrapped


def _add_adapter(model: GPT, shape: Config, config: TrainConfig, adapter: AdapterConfig) -> dict[str, Any]:
    """Quantise and freeze ``model``, which has its first weights, and add the pairs of ``adapter``.

    Returns what a checkpoint must agree with. Checkpoints hold the adapter only, so the base is loaded again at each
    resume, and compared by its digest.
    """
    identity = {"adapter": {**asdict(adapter), "targets": list(adapter.targets)}, "base": lora.base_digest(model)}
    if adapter.base == "bf16" or (adapter.base == "nf4" and config.precision == "bf16-true"):
        model.to(torch.bfloat16)
    if adapter.base == "nf4":
        nf4.quantise(model)
    lora.add(model, shape, adapter, seed=config.seed)
    return identity
