"""What a step changes: the network on its devices, its optimizer, and how far they are. Built once a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.config import Config

from bafogpt.model import lora, nf4
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
    """The network as it is called: wrapped by Fabric. ``state.model`` is the one inside."""
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
    load_base: Callable[[torch.nn.Module], None] | None = None,
) -> Learner:
    """The network of ``config`` with sizes ``shape``, sharded and prepared, with an optimizer that has no state yet.

    Where ``empty`` no weights are drawn: parameters are memory without a value until they are loaded, and a
    sharded network never exists whole on a process. ``load_base`` gives an adapter's base its weights, before it is
    quantised and frozen. ``identity`` is what a checkpoint must agree with (``data``, ``sequence_length``); the model's
    and the adapter's part is added.
    """
    gpu, tied = fabric.device.type == "cuda", config.model.tied
    gpt = empty_gpt(shape, tie_embeddings=tied) if empty else new_gpt(shape, tie_embeddings=tied, seed=config.seed)
    gpt.max_seq_length = config.data.sequence_length  # no angles of positions that no sample has
    identity = {"model": fingerprint(shape, tied), **identity}
    if config.optimizer.name != "adamw":  # of which older checkpoints say nothing
        identity["optimizer"] = config.optimizer.name
    if config.adapter is not None:  # the base is not saved, so it is loaded at a resume, too
        materialise(gpt, torch.device("cpu"))
        if load_base is not None:
            load_base(gpt)
        identity |= _add_adapter(gpt, shape, config)
    if gpu:
        liger_kernel()
    float8.convert(gpt, config, gpu=gpu)
    parallel.prepare_blocks(gpt, config, gpu=gpu)
    if parallel.world_size() == 1:
        if config.precision == "bf16-true":
            gpt.to(torch.bfloat16)
        materialise(gpt, fabric.device)
    wrapped = fabric.setup_module(gpt)  # more processes than one: sharded first, and then given memory
    gpt.reset_parameters()  # the angles of positions in float32 again: Fabric casts them under bf16-true
    trained = [parameter for parameter in gpt.parameters() if parameter.requires_grad]
    new_rows = NewTokenLR(
        trained,
        vocabulary=shape.padded_vocab_size,
        first=config.optimizer.first_new_row,
        factor=config.optimizer.new_rows_factor,
    )
    return Learner(
        config=config,
        fabric=fabric,
        sharding=sharding,
        model=wrapped,
        trained=trained,
        new_rows=new_rows,
        state=TrainState(gpt, optimizer.adamw(gpt, config.optimizer, fused=gpu), identity),
    )


def _add_adapter(model: GPT, shape: Config, config: TrainConfig) -> dict[str, Any]:
    """Freeze ``model``, which has its first weights, as ``config.adapter`` says, and put pairs on it.

    Returns what a checkpoint of it must agree with: nothing where the job has no adapter.
    """
    if config.adapter is None:
        return {}
    identity = {"adapter": {**asdict(config.adapter), "targets": list(config.adapter.targets)}}
    digest = lora.base_digest(model)
    if config.adapter.base != "as-is" and config.precision == "bf16-true":
        model.to(torch.bfloat16)  # what is quantised is what will be computed in
    if config.adapter.base == "nf4":
        nf4.quantise(model)
    elif config.adapter.base == "bf16":
        model.to(torch.bfloat16)
    lora.add(model, shape, config.adapter, seed=config.seed)
    return {**identity, "base": digest}
