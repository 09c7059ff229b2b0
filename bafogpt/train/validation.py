"""Loss on text that is never trained on."""

from __future__ import annotations

import torch

from bafogpt.train import batches, parallel, shares
from bafogpt.train.run import Run


@torch.no_grad()
def validate(run: Run) -> None:
    """Mean loss over the first samples of the validation split, always the same ones."""
    if run.validation is None:
        return
    fabric, micro = run.fabric, run.config.batch.micro
    count = min(run.config.validation.samples, run.validation.count) // fabric.world_size * fabric.world_size
    if count == 0:
        return
    own = list(shares.rank_samples(0, count, fabric.global_rank, fabric.world_size))
    total = torch.zeros((), device=fabric.device)
    run.model.eval()
    for start in range(0, len(own), micro):
        rows = [run.validation[index] for index in own[start : start + micro]]
        batch = batches.of_rows(rows, fabric.device)
        total += run.model(batch.ids, batch.targets, documents=batch.documents)
    run.model.train()
    parallel.reshard(run.state.model)
    mean = parallel.summed(fabric, total) / (count * run.validation.length)
    run.state.progress.validation_loss = mean
    run.log.restart_clock()
    run.log.write(step=run.state.progress.step, validation_loss=mean, validation_samples=count)
