"""AdamW from a job's configuration, over what is trained and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

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


class NewRows:
    """The rows that a vocabulary's new pieces have in the embedding and the output head, at a rate of their own.

    AdamW divides a gradient by its own size, so scaling gradients would change nothing, and a parameter group cannot
    hold a part of a parameter. So each step's change of those rows is multiplied: exactly what AdamW, weight decay
    included, does at ``factor`` times the rate. Tied matrices are one parameter and are changed once; of a sharded one
    each process changes the rows it holds.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, vocabulary: int, first: int, factor: float) -> None:
        """``parameters`` with ``vocabulary`` rows are meant, and of these the rows from ``first`` on."""
        self._factor = factor
        self._rows: list[torch.Tensor] = []
        for parameter in parameters if factor != 1 else ():
            if parameter.dim() == 2 and parameter.shape[0] == vocabulary:
                local, offset = _local(parameter)
                rows = local[max(0, first - offset) :]
                if len(rows):
                    self._rows.append(rows)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, and the new rows' own part of it."""
        before = [rows.clone() for rows in self._rows]
        optimizer.step()
        for rows, old in zip(self._rows, before, strict=True):
            rows.copy_(torch.lerp(old, rows, self._factor))


def _local(parameter: nn.Parameter) -> tuple[torch.Tensor, int]:
    """What this process holds of a parameter, and the row that it begins with."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local: torch.Tensor = parameter.to_local().detach()
    return local, int(offset[0])
