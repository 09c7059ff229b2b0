"""Who may compute. A slot is one answer being made, in a thread; a bounded number of requests waits for one.

Nothing is computed for a client that has gone: leaving :meth:`Engine.pieces` early, as a cancelled task does, tells the
thread to stop at its next token, and the slot is free when it has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bafogpt.model.chat_model import AnswerChunk


class BusyError(Exception):
    """As many requests wait as may."""


class Engine:
    """Slots and their threads, for one event loop."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots = slots
        self.queue = queue
        self.computing = 0
        """Threads at work."""
        self.waiting = 0
        self._free = asyncio.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="answer")

    def close(self) -> None:
        """End the threads; no answer may be under way."""
        self._threads.shutdown()

    async def pieces(self, answer: Callable[[], Iterator[AnswerChunk]]) -> AsyncIterator[AnswerChunk]:
        """The pieces of an answer, as a thread makes them. Raises :class:`BusyError` where the queue is full."""
        if self.computing >= self.slots and self.waiting >= self.queue:
            raise BusyError
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.computing += 1
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[AnswerChunk | BaseException | None] = asyncio.Queue()
        gone = threading.Event()
        work = loop.run_in_executor(
            self._threads, _work, answer, gone, lambda x: loop.call_soon_threadsafe(made.put_nowait, x)
        )
        work.add_done_callback(self._done)
        try:
            while (piece := await made.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            gone.set()

    def _done(self, _: object) -> None:
        self.computing -= 1
        self._free.release()


def _work(
    answer: Callable[[], Iterator[AnswerChunk]],
    gone: threading.Event,
    give: Callable[[AnswerChunk | BaseException | None], object],
) -> None:
    """In a thread: every piece to the event loop, then what ended it."""
    end: BaseException | None = None
    try:
        for piece in answer():
            if gone.is_set():
                return
            give(piece)
    except Exception as error:
        end = error
    give(end)
