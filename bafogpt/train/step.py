"""One optimizer step, whatever the number of processes and micro-batches: the loss is a sum over all of its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bafogpt.train import parallel
from bafogpt.train.batches import Batch
from bafogpt.train.learner import Learner
from bafogpt.train.optimizer import set_lr
from bafogpt.train.schedule import learning_rate


@dataclass(frozen=True)
class Measured:
    """What a step found. Tensors are scalars still on the device: reading them is waiting for it."""

    loss: torch.Tensor
    """This process's part of the step's mean loss, nats a target; the sum over processes is the step's loss."""
    norm: torch.Tensor
    """Of the whole gradient, before clipping."""
    rate: float
    targets: int
    """Tokens learned from, over all processes."""


def train_step(learner: Learner, micros: Sequence[Batch]) -> Measured:
    """Forward and backward on each micro-batch, one update. Gradients are exchanged once, with the last of them.

    What each target adds to the gradient is one share of the targets of the *whole* step, over all micro-batches and
    processes: a mean of their means would give tokens of emptier micro-batches more weight.
    """
    config, state, processes = learner.config, learner.state, parallel.world_size()
    rate = learning_rate(
        state.progress.step, peak=config.optimizer.learning_rate, steps=config.steps, schedule=config.schedule
    )
    set_lr(state.optimizer, rate)
    parallel.seed(config.seed, state.progress.step, parallel.rank())
    own = sum(batch.learned for batch in micros)
    targets = config.batch.tokens if learner.every_token else parallel.total(own)
    total = torch.zeros((), device=learner.fabric.device)
    for index, batch in enumerate(micros):
        parallel.accumulate(state.model, last=index == len(micros) - 1, sharding=learner.sharding)
        loss = learner.model(batch.ids, batch.targets, documents=batch.documents) / max(1, targets)
        learner.fabric.backward(loss * processes)  # FSDP takes the mean over processes
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(learner.trained, config.optimizer.clip_norm)
    learner.new_rows.step(state.optimizer)
    state.optimizer.zero_grad(set_to_none=True)
    state.progress.advance(config.batch_samples, targets)
    return Measured(total, norm, rate, targets)
