"""Loss on text that is never trained on: in all, for each stage, for each language; in nats a token and bits a byte.

Nats a token depend on the tokenizer: one with longer slices has fewer, harder tokens. Bits a byte do not, so they are
what models with different tokenizers are compared by::

    bits a byte = nats a token x (tokens ÷ bytes of the stage's text) ÷ ln 2

with tokens and bytes as the dataset's manifest counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bafogpt.storage.tokens.manifest import Split, Stage
from bafogpt.storage.tokens.stream import Samples
from bafogpt.train import parallel
from bafogpt.train.batches import Batch, make_batch, sample_row
from bafogpt.train.learner import Learner
from bafogpt.train.step_logger import StepLogger


class ValidationSlice(NamedTuple):
    """Tokens [low, high) of a sample, counted from its first in the stream: the targets of one stage."""

    sample: int
    low: int
    high: int


@dataclass(frozen=True)
class ValidationPlan:
    """What each validation reads: the same slices of the same samples, by stage."""

    samples: Samples
    stages: tuple[Stage, ...]
    slices: tuple[tuple[ValidationSlice, ...], ...]
    """For each of ``stages``."""


def plan_validation(samples: Samples, split: Split, wanted: int | None) -> ValidationPlan:
    """Share ``wanted`` samples evenly among the stages, from the start of each; small stages leave room to others."""
    stages = [stage for stage in split.stages if _slices(samples, stage, 1)]
    left = samples.count + len(stages) if wanted is None else max(wanted, len(stages))
    shares: dict[str, tuple[ValidationSlice, ...]] = {}
    for place, stage in enumerate(sorted(stages, key=lambda each: each.tokens)):
        shares[stage.name] = _slices(samples, stage, left // (len(stages) - place))
        left -= len(shares[stage.name])
    return ValidationPlan(samples, tuple(stages), tuple(shares[stage.name] for stage in stages))


def _slices(samples: Samples, stage: Stage, most: int) -> tuple[ValidationSlice, ...]:
    """The first ``most`` samples that predict tokens of a stage, each with the range of those tokens."""
    length, end = samples.length, stage.start_token + stage.tokens
    first = 1 if samples.bos is None else 0  # after <bos> a sample's first token is a target, too
    found: list[ValidationSlice] = []
    for index in range(max(0, stage.start_token - first) // length, samples.count):
        low = max(first, stage.start_token - index * length)
        high = min(first + length, end - index * length)
        if high <= low or len(found) == most:
            break
        found.append(ValidationSlice(index, low, high))
    return tuple(found)


class Validator:
    """Measures the loss on held-out text; all processes share the work."""

    def __init__(self, learner: Learner, validation: ValidationPlan, micro_batch: int, log: StepLogger) -> None:
        self._learner = learner
        self._validation = validation
        self._micro_batch = micro_batch
        self._log = log

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the loss, store it with the step, and write a metrics line."""
        learner, validation = self._learner, self._validation
        sums = torch.zeros(2, len(validation.stages), dtype=torch.float64, device=learner.fabric.device)
        learner.model.eval()
        for stage, batch in self._batches():
            sums[0, stage] += learner.model(batch.ids, batch.targets, documents=batch.documents)
            sums[1, stage] += batch.target_count or 0
        learner.model.train()
        parallel.reshard(learner.state.model)
        nats, targets = parallel.sum_tensor(sums).tolist()
        found = validation_metrics(validation, nats, targets)
        learner.state.progress.validation_loss = found["validation_loss"]
        self._log.restart_clock()
        self._log.write(step=learner.state.progress.step, **found)

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(number of the stage, batch) for this process. All processes get equally many, because FSDP needs that.

        Every batch has ``micro_batch`` rows: another shape would compile every block again. Rows beyond a stage's last
        slice repeat it, without targets.
        """
        fabric, samples, micro_batch = self._learner.fabric, self._validation.samples, self._micro_batch
        work = [
            (number, slices[start : start + micro_batch])
            for number, slices in enumerate(self._validation.slices)
            for start in range(0, len(slices), micro_batch)
        ]
        for turn in range(0, len(work), fabric.world_size):
            spare = turn + fabric.global_rank >= len(work)
            number, slices = work[turn if spare else turn + fabric.global_rank]
            rows = []
            for each in slices:
                row = sample_row(samples, each.sample, samples[each.sample])
                mask = np.zeros(samples.length, bool)
                mask[max(0, each.low - row.first_target) : max(0, each.high - row.first_target)] = not spare
                rows.append(row._replace(loss_mask=mask if row.loss_mask is None else mask & row.loss_mask))
            padding = rows[-1]._replace(loss_mask=np.zeros(samples.length, bool))
            yield number, make_batch(rows + [padding] * (micro_batch - len(rows)), fabric.device)


def validation_metrics(plan: ValidationPlan, nats: Sequence[float], targets: Sequence[float]) -> dict[str, Any]:
    """The metrics line, from each stage's sum of nats and its number of targets.

    ``validation_loss`` is the mean over all targets. ``validation_bpb`` and the languages weight each stage by its size
    in the whole split; bits a byte are left out where the manifest has no sizes in bytes.
    """
    losses = [total / max(1.0, count) for total, count in zip(nats, targets, strict=True)]
    languages: dict[str, list[int]] = {}
    for number, stage in enumerate(plan.stages):
        languages.setdefault("+".join(stage.languages), []).append(number)

    def mean(numbers: Sequence[int]) -> dict[str, float]:
        return _mean([plan.stages[number] for number in numbers], [losses[number] for number in numbers])

    line = {
        "validation_loss": sum(nats) / max(1.0, sum(targets)),
        "validation_samples": len({each.sample for slices in plan.slices for each in slices}),
        "validation_stages": {stage.name: mean([number]) for number, stage in enumerate(plan.stages)},
        "validation_languages": {name: mean(numbers) for name, numbers in languages.items() if name},
    }
    overall = bits_per_byte(plan.stages, losses)
    return line if overall is None else line | {"validation_bpb": overall}


def bits_per_byte(stages: Sequence[Stage], losses: Sequence[float]) -> float | None:
    """Bits a byte of ``losses`` in nats a token, each stage weighted by its size; None if a size is unknown."""
    if not all(stage.bytes for stage in stages):
        return None
    nats = sum(loss * stage.tokens for stage, loss in zip(stages, losses, strict=True))
    return nats / math.log(2) / sum(stage.bytes or 0 for stage in stages)


def _mean(stages: Sequence[Stage], losses: Sequence[float]) -> dict[str, float]:
    tokens = sum(stage.tokens for stage in stages)
    loss = sum(loss * stage.tokens for stage, loss in zip(stages, losses, strict=True)) / tokens
    bpb = bits_per_byte(stages, losses)
    return {"loss": loss} if bpb is None else {"loss": loss, "bpb": bpb}
