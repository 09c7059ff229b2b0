"""Parallel work in daemon threads, which end early after an error and never delay the exit of the process.

``concurrent.futures.ThreadPoolExecutor`` waits at exit for all submitted work; a supervisor whose grace period is over
cannot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]
"""Long work calls it now and then; it raises once another worker has failed."""


class Abandoned(Exception):  # noqa: N818 - the error is another worker's
    """Another worker has failed. Never leaves this module."""


def in_parallel(work: Callable[[Item, Check], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """``work(item, check)`` for every item in up to ``workers`` threads, begun in order; the results in order.

    The first error is raised once all workers have ended; ``check`` ends the others early, and no new item is begun.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    lock = threading.Lock()
    waiting = iter(range(len(items)))

    def check() -> None:
        if errors:
            raise Abandoned

    def worker() -> None:
        while not errors:
            with lock:
                number = next(waiting, None)
            if number is None:
                return
            try:
                results[number] = work(items[number], check)
            except Abandoned:
                return
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C does not wait for the others
        errors.append(error)
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


def start(work: Callable[[], Result]) -> Future[Result]:
    """Call ``work`` in a new thread."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
