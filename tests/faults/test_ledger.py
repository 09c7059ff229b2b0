"""The ledger finds what it is for: samples lost, repeated, out of order, or of another content."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from . import ledger
from .ledger import History, Ledger, Sample

BATCH = 4


def samples(step: int) -> list[Sample]:
    """What step 1, 2, … of a run must consume."""
    first = (step - 1) * BATCH
    return [(index, f"hash of {index}") for index in range(first, first + BATCH)]


def start(book: Ledger, step: int, *, of: int = 0) -> None:
    before = [each for number in range(1, step + 1) for each in samples(number)]
    consumed = functools.reduce(ledger.chained, before[: len(before) - of], "")
    book.start(step=step, samples=len(before) - of, consumed=consumed)


def written(path: Path, *parts: tuple[int, int]) -> Path:
    """A ledger of starts at a step, each followed by the steps to another one."""
    book = Ledger(path)
    for first, last in parts:
        start(book, first)
        for step in range(first + 1, last + 1):
            book.step(step, samples(step))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> History:
    return ledger.read(written(tmp_path / "truth", (0, 10)))


def test_a_run_left_in_peace_is_equal_to_itself(tmp_path: Path, truth: History):
    found = ledger.read(written(tmp_path / "same", (0, 10)), truth)
    assert ledger.compare(found, truth) == []


def test_work_that_was_lost_and_done_again_is_no_difference(tmp_path: Path, truth: History):
    found = ledger.read(written(tmp_path / "killed", (0, 5), (3, 9), (6, 10)), truth)
    assert ledger.compare(found, truth) == []
    assert found.redone == [(2, False), (3, False)]


def test_a_lost_sample_is_found(tmp_path: Path, truth: History):
    found = ledger.read(written(tmp_path / "lost", (0, 5), (6, 10)), truth)
    assert "went on at step 6, of which only 5 were done" in ledger.compare(found, truth)


def test_a_repeated_step_is_found(tmp_path: Path, truth: History):
    path = written(tmp_path / "twice", (0, 5))
    Ledger(path).step(5, samples(5))
    assert "step 5 came after step 5" in ledger.compare(ledger.read(path, truth), truth)


def test_samples_out_of_order_are_found_though_they_are_the_same(tmp_path: Path, truth: History):
    path = written(tmp_path / "order", (0, 9))
    Ledger(path).step(10, samples(10)[::-1])
    found = ledger.compare(ledger.read(path, truth), truth)
    assert found == ["step 10 consumed other samples than it must", "the samples consumed differ: from position 36"]


def test_a_wrong_token_is_found_in_work_that_was_discarded_too(tmp_path: Path, truth: History):
    path = tmp_path / "wrong"
    book = Ledger(path)
    start(book, 0)
    book.step(1, [(index, "another hash") for index, _ in samples(1)])
    written(path, (0, 10))
    assert ledger.compare(ledger.read(path, truth), truth) == ["step 1 consumed other samples than it must"]


def test_a_checkpoint_of_other_samples_is_found(tmp_path: Path, truth: History):
    path = written(tmp_path / "torn", (0, 5))
    start(Ledger(path), 4, of=1)
    (wrong,) = ledger.compare(ledger.read(path, truth), ledger.read(path))
    assert "step 4's checkpoint is of other samples" in wrong


def test_a_machine_lost_is_told_from_a_process_killed(tmp_path: Path, truth: History):
    path = written(tmp_path / "machine", (0, 5))
    Ledger(path).machine_lost()
    written(path, (2, 10))
    assert ledger.read(path, truth).redone == [(3, True)]
