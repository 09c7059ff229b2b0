"""Fabric for one process or many."""

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
"""What selective activation checkpointing keeps. A product in fp8 is seen as the ``mm`` that it was called as."""


def world_size() -> int:
    """Processes of this run, over all machines, as the supervisor set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def nodes() -> int:
    """Machines of this run."""
    return world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def make_fabric(
    config: TrainConfig, device: Literal["cpu", "cuda"], sharding: Sharding, *, sharded: bool | None = None
) -> Fabric:
    """Fabric over the processes that the supervisor started.

    One process trains on one device as it is, unless it is to be ``sharded``, too. More of them shard parameters,
    gradients and optimizer state with FSDP2, over gloo on CPU and NCCL on GPU; Fabric's own FSDPStrategy refuses CPU,
    so ModelParallelStrategy carries it.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for then
        torch.use_deterministic_algorithms(True)
    if device == "cpu":
        torch.set_num_threads(1)  # processes share the cores, and one thread adds numbers in one order
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
    """Give each block its activation checkpointing and its compilation, before the model is sharded or set up."""
    compiled = config.compile == "always" or (config.compile == "auto" and gpu)
    # a block that has been compiled too often would run on uncompiled, several times slower, and say nothing
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for index, block in enumerate(model.transformer.h):
        if config.activation_checkpointing == "full":
            block = checkpoint_wrapper(block)
        elif config.activation_checkpointing == "selective":
            contexts = functools.partial(create_selective_checkpoint_contexts, _keep_products)
            block = checkpoint_wrapper(block, context_fn=contexts)
        model.transformer.h[index] = block
        if compiled:  # a block at a time: they are alike, so that one compilation serves all
            block.compile(dynamic=False)


def _keep_products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """Keep what takes long to compute again; the rest is reading and writing memory."""
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def _shard(model: Any, device_mesh: Any, config: TrainConfig, sharding: Sharding) -> Any:
    """Fabric's ``parallelize_fn``: FSDP2 on each block and on the rest.

    What is frozen is whole on every process: NF4 is no matrix that could be cut by rows, and it is small.
    """
    mesh = device_mesh["data_parallel"]
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    if frozen and mesh.device_type == "cuda":  # FSDP moves what it shards and nothing else
        model.to(torch.device("cuda", local_rank()))
    mixed = MixedPrecisionPolicy()
    if config.precision == "bf16-mixed":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard = functools.partial(fully_shard, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
    for block in model.transformer.h:
        shard(block, reshard_after_forward=sharding != "step")
    shard(model, reshard_after_forward=False)  # the backward pass begins with it
    cuda = mesh.device_type == "cuda"
    materialise(model, torch.device("cuda", local_rank()) if cuda else torch.device("cpu"))
    return model


def set_gradient_sync(model: torch.nn.Module, *, last: bool, sharding: Sharding) -> None:
    """Set ``model`` up for one micro-batch of a step, the ``last`` one or another, as ``train.sharding`` says."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or sharding == "full")
        model.set_reshard_after_backward(last or sharding != "step")


def device_bytes(device: torch.device) -> int:
    """Memory that one process may use: the GPU's, or its share of what this machine has free."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().available) // (world_size() // nodes())


def reshard(model: torch.nn.Module) -> None:
    """Give back the parameters that a forward pass without a backward pass left gathered on every process.

    FSDP2 keeps the outermost ones for a backward pass that never comes after a validation; they would be saved whole,
    and without their optimizer state.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def seed(base: int, step: int, rank: int) -> None:
    """Seed what a step draws (dropout, noise) from the step and the process alone.

    So there is no generator to save, and a resumed run draws what it would have drawn.
    """
    torch.manual_seed((base << 40) ^ (step << 12) ^ rank)


def any_process(flag: bool) -> bool:
    """Whether any process says so; all get the same answer, so all leave the loop at the same step."""
    return flag if world_size() == 1 else sum_int(int(flag)) > 0


def sum_int(number: int) -> int:
    """The sum of a number over all processes. It goes between hosts (gloo): no device is waited for."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(tensor)
    return int(tensor)


def min_int(number: int) -> int:
    """The smallest of a number over all processes, exchanged between hosts."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def sum_tensor(values: torch.Tensor) -> torch.Tensor:
    """The sum of each number of a tensor over all processes, on the device. A GPU is not waited for.

    Not Fabric's ``all_reduce``, which has a barrier before it: on a GPU that waits until all work is done.
    """
    if world_size() == 1:
        return values
    sum_int = values.detach().clone()
    dist.all_reduce(sum_int)
    return sum_int


def step_totals(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Loss (of which each process has a part) and gradient norm of a step as [2] float32, still on the device."""
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.stack([sum_tensor(loss).float(), whole.float()])
