from __future__ import annotations

import threading

import pytest

from bafogpt.storage.parallel import Check, in_parallel, start


def test_results_come_in_the_order_of_the_items() -> None:
    second_is_done = threading.Event()

    def work(item: int, _: Check) -> int:
        if item == 0:
            assert second_is_done.wait(10)
        second_is_done.set()
        return item * 10

    assert in_parallel(work, [0, 1, 2, 3], workers=2) == [0, 10, 20, 30]
    assert in_parallel(work, [], workers=2) == []


def test_no_more_workers_than_allowed_run_at_a_time() -> None:
    busy = threading.Semaphore(3)

    def work(_: int, __: Check) -> None:
        assert busy.acquire(blocking=False)
        busy.release()

    in_parallel(work, range(200), workers=3)


def test_the_first_error_is_raised_and_the_rest_is_not_begun() -> None:
    begun: list[int] = []

    def work(item: int, _: Check) -> None:
        begun.append(item)
        if item == 1:
            raise ValueError("that one")

    with pytest.raises(ValueError, match="that one"):
        in_parallel(work, range(100), workers=1)
    assert begun == [0, 1]


def test_long_work_is_abandoned_when_another_worker_has_failed() -> None:
    started = threading.Event()

    def work(item: str, check: Check) -> None:
        if item == "fails":
            assert started.wait(10)
            raise ValueError("that one")
        started.set()
        while True:
            check()

    with pytest.raises(ValueError, match="that one"):
        in_parallel(work, ["long", "fails"], workers=2)


def test_a_started_call_returns_its_result_or_its_error() -> None:
    assert start(lambda: 7).result() == 7

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        start(fail).result()
