"""What trainers consumed, line by line as they did it; kept outside the run's folder, so no kill takes it away.

A start line says where a trainer went on, a step line which samples it consumed, in the order in which it did.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "FAULTS_LEDGER"
Sample = tuple[int, str]
"""Index, and hash of the tokens."""


def chained(consumed: str, sample: Sample) -> str:
    """The hash of all samples consumed, one more included."""
    return hashlib.blake2b(f"{consumed} {sample}".encode(), digest_size=16).hexdigest()


class Ledger:
    """The trainer's end: appends. One write a line, so a kill cannot leave half of one."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def start(self, **values: Any) -> None:
        """``step``, ``samples``, ``consumed`` (hash of all before) and how many read, from which checkpoint."""
        self._write({"start": values})

    def step(self, step: int, samples: Iterable[Sample]) -> None:
        """A step's samples, before the state is changed by them."""
        self._write({"step": step, "samples": list(samples)})

    def machine_lost(self) -> None:
        """Written by the bench when it takes the run's folder away."""
        self._write({"lost": True})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._handle, (json.dumps(line) + "\n").encode())


@dataclass
class History:
    """The run that counts, out of all that was done: what was done again replaces what was lost."""

    steps: list[list[Sample]] = field(default_factory=list)
    """Samples of step 1, 2, …, in the order in which they were consumed."""
    wrong: list[str] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    redone: list[tuple[int, bool]] = field(default_factory=list)
    """Steps that each start but the first did again, and whether the machine had been lost with its disk."""
    lost: bool = False


def read(path: Path, reference: History | None = None) -> History:
    """The history in a ledger; with ``reference``, every line of it is compared, discarded ones too."""
    history = History()
    for raw in path.read_text().splitlines():
        line = json.loads(raw)
        if "lost" in line:
            history.lost = True
        elif "start" in line:
            _start(history, line["start"])
        else:
            _step(history, line["step"], [(int(index), str(hash_)) for index, hash_ in line["samples"]], reference)
    return history


def compare(found: History, reference: History) -> list[str]:
    """What differs from the run that was left undisturbed, the order included; an empty list is equality."""
    wrong = list(found.wrong)
    mine, true = ([sample for step in each.steps for sample in step] for each in (found, reference))
    if mine != true:
        at = next((i for i, pair in enumerate(zip(mine, true, strict=False)) if pair[0] != pair[1]), None)
        where = f"from position {at}" if at is not None else f"{len(mine)} samples, not {len(true)}"
        wrong.append(f"the samples consumed differ: {where}")
    return wrong


def _start(history: History, start: dict[str, Any]) -> None:
    step, samples = start["step"], start["samples"]
    if step > len(history.steps):
        history.wrong.append(f"resumed at step {step}, of which only {len(history.steps)} were done")
        return
    if history.starts:
        history.redone.append((len(history.steps) - step, history.lost))
    history.lost = False
    history.starts.append(start)
    del history.steps[step:]
    before = [sample for each in history.steps for sample in each]
    consumed = functools.reduce(chained, before, "")
    if (samples, start["consumed"]) != (len(before), consumed):
        history.wrong.append(f"step {step}'s checkpoint is of other samples than those consumed before it")


def _step(history: History, step: int, samples: list[Sample], reference: History | None) -> None:
    if step != len(history.steps) + 1:
        history.wrong.append(f"step {step} came after step {len(history.steps)}")
    history.steps.append(samples)
    if reference is not None and (step > len(reference.steps) or samples != reference.steps[step - 1]):
        history.wrong.append(f"step {step} consumed other samples than it must")
