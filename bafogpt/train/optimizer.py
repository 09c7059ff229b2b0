"""The learning rate schedule, and AdamW over the trained parameters, with 32-bit or 8-bit moments.

8-bit moments are bitsandbytes': indices into a table of 256 values, and a scale for each 256 of them. That optimizer
counts steps in a Python number, which is restored from the run's own count.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bafogpt.train.config import OptimizerConfig, ScheduleConfig

SAVED = ("step", "exp_avg", "exp_avg_sq")
SAVED_8BIT = ("state1", "state2", "absmax1", "absmax2")
"""The state of each parameter that is saved; for a small one in 8 bits only the first two."""

warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # 8 bits are


def learning_rate(step: int, *, peak: float, steps: int, schedule: ScheduleConfig) -> float:
    """The rate for optimizer step ``step`` (0-based) of ``steps``.

    Linear from ``peak / warmup`` to ``peak``, then to ``final_ratio * peak`` at the last step: half a cosine
    (Loshchilov & Hutter 2017, without restarts), or level and then a straight line (Hu et al. 2024, arXiv:2404.06395).
    A warm-up longer than the run never reaches the peak. From ``restart_at`` on all of it begins anew.
    """
    if step >= schedule.restart_at:
        step, steps = step - schedule.restart_at, steps - schedule.restart_at
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "wsd":
        decay = max(1, round(steps * schedule.decay_share))
        left = min(1.0, (steps - 1 - step) / decay)
    else:
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * left)


def adamw(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW over the parameters that are not frozen, with weight decay for matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "adamw8bit-paged":
        from bitsandbytes.optim import PagedAdamW8bit

        make: Any = PagedAdamW8bit  # has no types
        used = [group for group in groups if group["params"]]
        made: torch.optim.Optimizer = make(used, lr=config.learning_rate, betas=betas, eps=config.eps)
        return made
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=fused or None)


def saved_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """The part of a parameter's state that is saved, by the optimizer's names."""
    state = optimizer.state[parameter]
    return {key: state[key] for key in (SAVED if "exp_avg" in state else SAVED_8BIT) if key in state}


@torch.no_grad()
def init_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state that the first step would create, to load a checkpoint into.

    The fused AdamW counts steps on the parameter's device, the other one on the CPU (pytorch issue 104767).
    """
    eight_bit: Any = None if isinstance(optimizer, torch.optim.AdamW) else optimizer
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if eight_bit is not None:
                eight_bit.init_state(group, parameter, number, place)
                continue
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Set the number of steps done, where the optimizer does not keep it in a tensor."""
    for state in optimizer.state.values():
        if isinstance(state["step"], int):
            state["step"] = steps


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class NewTokenLR:
    """A learning rate of their own for the new tokens' rows of embedding and output head.

    AdamW is invariant to the scale of gradients, and a parameter group cannot hold part of a parameter. So each step's
    change of those rows is multiplied, which equals AdamW, weight decay included, at ``factor`` times the rate. Tied
    matrices are one parameter and are changed once; of a sharded one each process changes the rows it holds.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig, *, vocabulary: int) -> None:
        """Of the matrices with ``vocabulary`` rows, the rows from ``config.first_new_row`` on get the other rate."""
        self._factor = config.new_rows_factor
        self._rows: list[torch.Tensor] = []
        for parameter in parameters if self._factor != 1 else ():
            if parameter.dim() == 2 and parameter.shape[0] == vocabulary:
                local, offset = _local_rows(parameter)
                rows = local[max(0, config.first_new_row - offset) :]
                if len(rows):
                    self._rows.append(rows)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, with the change of the new rows multiplied."""
        before = [rows.clone() for rows in self._rows]
        optimizer.step()
        for rows, old in zip(self._rows, before, strict=True):
            rows.copy_(torch.lerp(old, rows, self._factor))


def _local_rows(parameter: nn.Parameter) -> tuple[torch.Tensor, int]:
    """This process's rows of a parameter, and the number of the first."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local: torch.Tensor = parameter.to_local().detach()
    return local, int(offset[0])
