"""8-bit floating point in the blocks' linear layers, by torchao's dynamic scaling.

The inputs of a product are scaled and cast to fp8 just before it (Micikevicius et al. 2022, arXiv:2209.05433).
Parameters, optimizer and checkpoints do not change. Embedding and output head stay as they are: the fused loss
multiplies by the head itself.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging

import torch
from torch import nn

from bafogpt.core.errors import ConfigError
from bafogpt.model.gpt import GPT
from bafogpt.train import parallel
from bafogpt.train.config import TrainConfig

CAPABILITY = (8, 9)
"""The first compute capability with fp8 products: Ada."""
MULTIPLE = 16
"""cuBLAS needs fp8 matrices with rows of a multiple of 16 bytes."""
OFF = "--set train.float8=none"


def check(config: TrainConfig, *, gpu: bool) -> None:
    """Raise :class:`ConfigError` where fp8 cannot be used: an older GPU, ``32-true`` on a GPU, or no torchao."""
    if config.float8 == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("train.float8 needs torchao, which is not installed", "pip install 'bafogpt[gpu]'")
    if not gpu:
        return
    capability = torch.cuda.get_device_capability(parallel.local_rank())
    if capability < CAPABILITY:
        found, needed = (".".join(map(str, each)) for each in (capability, CAPABILITY))
        raise ConfigError(f"fp8 needs a GPU of compute capability {needed}; this one has {found}", OFF)
    if config.precision == "32-true":
        raise ConfigError("train.float8 on a GPU needs a bf16 precision, here is 32-true", OFF)


def convert(model: GPT, config: TrainConfig, *, gpu: bool) -> None:
    """Convert the linear layers of ``model``'s blocks to fp8, in place; a CPU emulates it.

    Raises :class:`ConfigError` for a layer whose width is not a multiple of 16.
    """
    if config.float8 == "none":
        return
    blocks: nn.ModuleList = model.transformer.h
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear) and (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            raise ConfigError(
                f"fp8 needs widths that are multiples of {MULTIPLE}; block layer {name} is "
                f"{module.in_features} x {module.out_features}",
                OFF,
            )
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns about inference kernels for other GPUs
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name(config.float8)
    convert_to_float8_training(blocks, config=dataclasses.replace(recipe, emulate=not gpu))
    if not gpu and parallel.rank() == 0:
        print("fp8 is emulated on this CPU: slower than bf16, for tests", flush=True)
