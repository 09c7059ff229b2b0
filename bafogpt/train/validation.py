"""Loss on text that is never trained on: in all, for each stage, for each language; in nats a token and bits a byte.

Nats a token depend on the tokenizer: one with longer pieces has fewer, harder tokens. Bits a byte do not, so they are
what models with different tokenizers are compared by::

    bits a byte = nats a token x (tokens ÷ bytes of the stage's text) ÷ ln 2

with tokens and bytes as the dataset's manifest counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bafogpt.model.loss import IGNORE
from bafogpt.storage.tokens.manifest import Split, Stage
from bafogpt.storage.tokens.stream import Samples
from bafogpt.train import batches, parallel
from bafogpt.train.learner import Learner
from bafogpt.train.step_logger import StepLogger


class ValidationSlice(NamedTuple):
    """Tokens [low, high) of sample ``sample``, counted from its first in the stream: the targets of one stage."""

    sample: int
    low: int
    high: int


@dataclass(frozen=True)
class ValidationPlan:
    """What is read at each validation: the same pieces of the same samples, by stage."""

    samples: Samples
    stages: tuple[Stage, ...]
    pieces: tuple[tuple[ValidationSlice, ...], ...]
    """For each of ``stages``."""

    @property
    def count(self) -> int:
        """Different samples that are read."""
        return len({piece.sample for pieces in self.pieces for piece in pieces})


def plan_validation(samples: Samples, split: Split, wanted: int | None) -> ValidationPlan:
    """Share ``wanted`` samples evenly among the stages, from the start of each; stages that have fewer leave room."""
    stages = [stage for stage in split.stages if _pieces(samples, stage, 1)]
    left = samples.count + len(stages) if wanted is None else max(wanted, len(stages))
    shares: dict[str, tuple[ValidationSlice, ...]] = {}
    for place, stage in enumerate(sorted(stages, key=lambda each: each.tokens)):  # the small ones first
        shares[stage.name] = _pieces(samples, stage, left // (len(stages) - place))
        left -= len(shares[stage.name])
    return ValidationPlan(samples, tuple(stages), tuple(shares[stage.name] for stage in stages))


def _pieces(samples: Samples, stage: Stage, most: int) -> tuple[ValidationSlice, ...]:
    """The first ``most`` samples that predict tokens of a stage, and which of their targets those are."""
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
        self._micro = micro_batch
        self._log = log

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the loss, store it with the step, and write a metrics line."""
        learner, validation = self._learner, self._validation
        sums = torch.zeros(2, len(validation.stages), dtype=torch.float64, device=learner.fabric.device)
        learner.model.eval()
        for stage, batch in self._batches():
            sums[0, stage] += learner.model(batch.ids, batch.targets, documents=batch.documents)
            sums[1, stage] += (batch.targets != IGNORE).sum()
        learner.model.train()
        parallel.reshard(learner.state.model)
        nats, targets = parallel.sum_tensor(sums).tolist()
        found = validation_metrics(validation, nats, targets)
        learner.state.progress.validation_loss = found["validation_loss"]
        self._log.restart_clock()
        self._log.write(step=learner.state.progress.step, **found)

    def _batches(self) -> Iterator[tuple[int, batches.Batch]]:
        """(number of the stage, batch) for this process. Each gets as many, because FSDP's processes go in step.

        Every batch has ``micro_batch`` rows: another shape would compile every block again. Rows beyond a stage's last
        slice repeat it and count for nothing.
        """
        fabric, samples, micro_batch = self._learner.fabric, self._validation.samples, self._micro
        work = [
            (number, pieces[start : start + micro_batch])
            for number, pieces in enumerate(self._validation.pieces)
            for start in range(0, len(pieces), micro_batch)
        ]
        for turn in range(0, len(work), fabric.world_size):
            spare = turn + fabric.global_rank >= len(work)
            number, pieces = work[turn if spare else turn + fabric.global_rank]
            rows = [batches.sample_row(samples, piece.sample, samples[piece.sample]) for piece in pieces]
            batch = batches.make_batch(rows + rows[-1:] * (micro_batch - len(rows)), fabric.device)
            targets = batch.targets.clone()
            for place, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
                low, high = max(0, piece.low - row.first_target), max(0, piece.high - row.first_target)
                targets[place, : samples.length if spare else low] = IGNORE
                targets[place, high:] = IGNORE
            targets[len(pieces) :] = IGNORE
            yield number, batch._replace(targets=targets)


def validation_metrics(validation: ValidationPlan, nats: Sequence[float], targets: Sequence[float]) -> dict[str, Any]:
    """The metrics line of each stage's sum of nats over its number of targets.

    ``validation_loss`` is the mean over all targets that were read. ``validation_bpb`` weights each stage as the whole
    split does, and so do languages; both are left out where the manifest does not say how many bytes there are.
    """
    losses = [total / max(1.0, count) for total, count in zip(nats, targets, strict=True)]
    line: dict[str, Any] = {
        "validation_loss": sum(nats) / max(1.0, sum(targets)),
        "validation_samples": validation.count,
        "validation_stages": {s.name: _told([s], [loss]) for s, loss in zip(validation.stages, losses, strict=True)},
    }
    languages: dict[str, list[int]] = {}
    for number, stage in enumerate(validation.stages):
        languages.setdefault("+".join(stage.languages), []).append(number)
    line["validation_languages"] = {
        name: _told([validation.stages[n] for n in numbers], [losses[n] for n in numbers])
        for name, numbers in languages.items()
        if name
    }
    overall = bits_per_byte(validation.stages, losses)
    return line if overall is None else line | {"validation_bpb": overall}


def bits_per_byte(stages: Sequence[Stage], losses: Sequence[float]) -> float | None:
    """Of text with those losses (nats a token), each stage at its size; None where a size in bytes is not known."""
    if not all(stage.bytes for stage in stages):
        return None
    nats = sum(loss * stage.tokens for stage, loss in zip(stages, losses, strict=True))
    return nats / math.log(2) / sum(stage.bytes or 0 for stage in stages)


def _told(stages: Sequence[Stage], losses: Sequence[float]) -> dict[str, float]:
    tokens = sum(stage.tokens for stage in stages)
    loss = sum(loss * stage.tokens for stage, loss in zip(stages, losses, strict=True)) / tokens
    bpb = bits_per_byte(stages, losses)
    return {"loss": loss} if bpb is None else {"loss": loss, "bpb": bpb}
