"""AdamW from a job's configuration, over what is trained and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from bafogpt.train.config import OptimizerConfig


def adamw(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone. Parameters that are frozen are left out."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=fused or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the step that comes."""
    for group in optimizer.param_groups:
        group["lr"] = rate
