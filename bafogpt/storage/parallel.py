"""Work side by side, in threads that never outlive an error and never hold up the end of the process.

``concurrent.futures`` waits at exit for all that was submitted; a supervisor whose grace period is over must not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]
"""Long work calls it now and then; it raises once the work is in vain."""


class Abandoned(Exception):  # noqa: N818 - nothing went wrong here, but elsewhere
    """Another lane has failed. Never leaves this module."""


def in_parallel(work: Callable[[Item, Check], Result], items: Sequence[Item], lanes: int) -> list[Result]:
    """``work(item, check)`` for every item, up to ``lanes`` at a time, begun in order; the results in order.

    The first error is raised when the other lanes have ended, which ``check`` and the lack of new items hasten.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    lock = threading.Lock()
    waiting = iter(range(len(items)))

    def check() -> None:
        if errors:
            raise Abandoned

    def lane() -> None:
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

    threads = [threading.Thread(target=lane, daemon=True) for _ in range(min(lanes, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: the others are not waited for
        errors.append(error)
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


class Call(threading.Thread, Generic[Result]):
    """One call that has begun, in a thread of its own."""

    def __init__(self, work: Callable[[], Result]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self) -> Result:
        """Wait for its end: what it returned, or its error raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._result[0]
