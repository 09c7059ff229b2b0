"""Fine-tuning is training with an adapter: the base is loaded, made small, frozen, and given its pairs.

What is saved of such a run is the adapter alone, so the base is loaded again at each resume; the checkpoint knows it by
:func:`bafogpt.model.lora.base_digest`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from litgpt.config import Config

from bafogpt.model import lora, nf4
from bafogpt.model.gpt import GPT
from bafogpt.train.config import TrainConfig


def adapt(model: GPT, shape: Config, config: TrainConfig) -> dict[str, Any]:
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
