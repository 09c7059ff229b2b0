"""One optimizer step, whatever the number of processes and micro-batches: the loss is a sum over all of its targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bafogpt.train import parallel
from bafogpt.train.batches import Batch
from bafogpt.train.learner import Learner
from bafogpt.train.metrics import StepMetrics
from bafogpt.train.optimizer import learning_rate, set_lr


def train_step(learner: Learner, micros: Sequence[Batch]) -> StepMetrics:
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
    learned = [batch.target_count for batch in micros if batch.target_count is not None]
    targets = parallel.sum_int(sum(learned)) if learned else config.batch.tokens
    total = torch.zeros((), device=learner.fabric.device)
    for index, batch in enumerate(micros):
        parallel.set_gradient_sync(state.model, last=index == len(micros) - 1, sharding=learner.sharding)
        loss = learner.model(batch.ids, batch.targets, documents=batch.documents) / max(1, targets)
        learner.fabric.backward(loss * processes)  # FSDP takes the mean over processes
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(learner.trained, config.optimizer.clip_norm)
    learner.new_rows.step(state.optimizer)
    state.optimizer.zero_grad(set_to_none=True)
    state.progress.advance(config.batch_samples, targets)
    return StepMetrics(total, norm, rate, targets)
