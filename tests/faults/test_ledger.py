"""The ledger detects samples that are lost, repeated, out of order, or of another content."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from . import ledger
from .ledger import History, Ledger, Sample

BATCH = 4


def samples(step: int) -> list[Sample]:
    """The samples of step 1, 2, …"""
    first = (step - 1) * BATCH
    return [(index, f"hash of {index}") for index in range(first, first + BATCH)]


def start(book: Ledger, step: int, *, missing: int = 0) -> None:
    before = [each for number in range(1, step + 1) for each in samples(number)]
    before = before[: len(before) - missing]
    book.start(step=step, samples=len(before), consumed=functools.reduce(ledger.chained, before, ""))


def written(path: Path, *parts: tuple[int, int]) -> Path:
    """A ledger of starts at a step, each followed by the steps to another one."""
    book = Ledger(path)
    for first, last in parts:
        start(book, first)
        for step in range(first + 1, last + 1):
            book.step(step, samples(step))
    return path


@pytest.fixture
def reference(tmp_path: Path) -> History:
    return ledger.read(written(tmp_path / "truth", (0, 10)))


def test_lost_work_that_is_done_again_is_no_difference(tmp_path: Path, reference: History):
    path = written(tmp_path / "killed", (0, 5), (3, 9))
    Ledger(path).machine_lost()
    found = ledger.read(written(path, (6, 10)), reference)
    assert ledger.compare(found, reference) == []
    assert found.redone == [(2, False), (3, True)]


def lost(path: Path) -> None:
    written(path, (0, 5), (6, 10))


def repeated(path: Path) -> None:
    Ledger(written(path, (0, 5))).step(5, samples(5))


def out_of_order(path: Path) -> None:
    Ledger(written(path, (0, 9))).step(10, samples(10)[::-1])


def of_other_content(path: Path) -> None:
    """In work that is discarded later."""
    book = Ledger(path)
    start(book, 0)
    book.step(1, [(index, "another hash") for index, _ in samples(1)])
    written(path, (0, 10))


def of_another_checkpoint(path: Path) -> None:
    start(Ledger(written(path, (0, 5))), 4, missing=1)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lost, "resumed at step 6, of which only 5 were done"),
        (repeated, "step 5 came after step 5"),
        (out_of_order, "step 10 consumed other samples than it must"),
        (out_of_order, "the samples consumed differ: from position 36"),
        (of_other_content, "step 1 consumed other samples than it must"),
        (of_another_checkpoint, "step 4's checkpoint is of other samples than those consumed before it"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, reference: History, wrong, found: str):  # type: ignore[no-untyped-def]
    wrong(tmp_path / "wrong")
    assert found in ledger.compare(ledger.read(tmp_path / "wrong", reference), reference)
