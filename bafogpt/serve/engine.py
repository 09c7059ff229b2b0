"""Slots for answers, each computed in a thread, and a bounded queue of requests that wait for one.

Leaving :meth:`InferenceEngine.chunks` early, as the task of a client that hung up does, stops the thread at its next
token and frees the slot.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bafogpt.model.chat_model import AnswerChunk


class QueueFullError(Exception):
    """The queue is full."""


class InferenceEngine:
    """Slots and their threads, for one event loop."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots = slots
        self.queue = queue
        self.computing = 0
        """Slots in use."""
        self.waiting = 0
        self._free = asyncio.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="answer")

    def close(self) -> None:
        """End the threads; no answer may be in progress."""
        self._threads.shutdown()

    async def chunks(self, answer: Callable[[], Iterator[AnswerChunk]]) -> AsyncIterator[AnswerChunk]:
        """The pieces of an answer, as a thread makes them. Raises :class:`QueueFullError` where the queue is full."""
        if self.computing >= self.slots and self.waiting >= self.queue:
            raise QueueFullError
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
            while (chunk := await made.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
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
    """In a thread: pass every chunk to the event loop, then None or the error."""
    end: BaseException | None = None
    try:
        for chunk in answer():
            if gone.is_set():
                return
            give(chunk)
    except Exception as error:
        end = error
    give(end)
