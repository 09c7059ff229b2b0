"""Fabric and FSDP2 for one process or many, and reductions over all processes."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bafogpt.model.gpt import materialise
from bafogpt.train.config import Sharding, TrainConfig

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default),
    *(aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default),
    torch.ops.higher_order.flex_attention,
    aten.max.default,  # one number; with train.float8 it is the scale of a product's input, and reads all of it
}
"""Operators whose results selective activation checkpointing keeps; a product in fp8 is dispatched as ``mm``."""


def world_size() -> int:
    """Number of processes over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number over all machines."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def nodes() -> int:
    """Number of machines."""
    return world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def make_fabric(
    config: TrainConfig, device: Literal["cpu", "cuda"], sharding: Sharding, *, sharded: bool | None = None
) -> Fabric:
    """Fabric over the processes that the supervisor started.

    Several processes, or one if ``sharded``, shard parameters, gradients and optimizer state with FSDP2, over gloo on
    CPU and NCCL on GPU. Fabric's FSDPStrategy refuses CPU, so ModelParallelStrategy is used.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch's deterministic mode
        torch.use_deterministic_algorithms(True)
    if device == "cpu":
        torch.set_num_threads(1)  # processes share the cores, and one thread adds in a fixed order
    if not (world_size() > 1 if sharded is None else sharded):
        return Fabric(accelerator=device, devices=1, precision=config.precision)
    strategy = ModelParallelStrategy(
        parallelize_fn=functools.partial(_shard, config=config, sharding=sharding),
        data_parallel_size=world_size(),
        tensor_parallel_size=1,
        process_group_backend="cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
    )
    return Fabric(
        accelerator=device,
        devices=world_size() // nodes(),
        num_nodes=nodes(),
        strategy=strategy,
        precision="bf16-true" if config.precision == "bf16-true" else "32-true",
        plugins=[TorchElasticEnvironment()],
    )


def prepare_blocks(model: Any, config: TrainConfig, *, gpu: bool) -> None:
    """Wrap each block for activation checkpointing and compile it, before the model is sharded."""
    compiled = config.compile == "always" or (config.compile == "auto" and gpu)
    # without this, a block that is compiled too often runs uncompiled, several times slower, without an error
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for index, block in enumerate(model.transformer.h):
        if config.activation_checkpointing == "full":
            block = checkpoint_wrapper(block)
        elif config.activation_checkpointing == "selective":
            contexts = functools.partial(create_selective_checkpoint_contexts, _keep_products)
            block = checkpoint_wrapper(block, context_fn=contexts)
        model.transformer.h[index] = block
        if compiled:  # one compilation serves all blocks
            block.compile(dynamic=False)


def _keep_products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """Keep what takes long to recompute."""
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def _shard(model: Any, device_mesh: Any, config: TrainConfig, sharding: Sharding) -> Any:
    """Fabric's ``parallelize_fn``: FSDP2 on each block and on the rest.

    Frozen parameters are whole on every process: NF4 cannot be cut by rows, and it is small.
    """
    mesh = device_mesh["data_parallel"]
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    device = torch.device("cuda", local_rank()) if mesh.device_type == "cuda" else torch.device("cpu")
    if frozen and mesh.device_type == "cuda":  # FSDP only moves what it shards
        model.to(device)
    mixed = MixedPrecisionPolicy()
    if config.precision == "bf16-mixed":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard = functools.partial(fully_shard, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
    for block in model.transformer.h:
        shard(block, reshard_after_forward=sharding != "step")
    shard(model, reshard_after_forward=False)  # the backward pass begins with it
    materialise(model, device)
    return model


def set_gradient_sync(model: torch.nn.Module, *, last: bool, sharding: Sharding) -> None:
    """Prepare ``model`` for a micro-batch of a step, as ``train.sharding`` says."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or sharding == "full")
        model.set_reshard_after_backward(last or sharding != "step")


def device_bytes(device: torch.device) -> int:
    """Memory that one process may use: the GPU's, or its share of this machine's free memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().available) // (world_size() // nodes())


def reshard(model: torch.nn.Module) -> None:
    """Release the parameters that FSDP2 keeps gathered after a forward pass without a backward pass.

    A checkpoint after a validation would otherwise save them whole, and without their optimizer state.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def seed(base: int, step: int, rank: int) -> None:
    """Seed a step's random numbers (dropout) from step and process alone, so that a resume needs no generator state."""
    torch.manual_seed((base << 40) ^ (step << 12) ^ rank)


def any_process(flag: bool) -> bool:
    """Whether ``flag`` is set on any process; all processes get the same answer."""
    return sum_int(int(flag)) > 0


def sum_int(number: int) -> int:
    """The sum over all processes, exchanged between hosts (gloo), without waiting for a device."""
    return _reduce_int(number, dist.ReduceOp.SUM)


def min_int(number: int) -> int:
    """The minimum over all processes, exchanged between hosts."""
    return _reduce_int(number, dist.ReduceOp.MIN)


def _reduce_int(number: int, operation: Any) -> int:
    if world_size() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(tensor, op=operation)
    return int(tensor)


def sum_tensor(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum over all processes, on the device, without waiting for it as Fabric's ``all_reduce`` does."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def step_totals(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Loss (of which each process has a part) and gradient norm of a step as [2] float32, on the device."""
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.stack([sum_tensor(loss).float(), whole.float()])
