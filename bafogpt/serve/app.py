"""The routes, in the shape of OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bafogpt.core.errors import BafoError
from bafogpt.model.chat_model import AnswerChunk, ChatModel
from bafogpt.serve.engine import InferenceEngine, QueueFullError
from bafogpt.serve.requests import ChatRequest, RequestError


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Limits of the server."""

    slots: int = 2
    """Answers computed at the same time."""
    queue: int = 64
    """Requests that may wait for a slot; the next one gets 429."""
    max_tokens: int | None = None
    """Longest answer; None is what the model's positions allow."""
    default_tokens: int = 512
    """Longest answer if the request sets none."""
    body_bytes: int = 4 << 20
    """Largest request."""

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("queue", 0), ("default_tokens", 1), ("body_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; at least 1")


def make_app(chat_model: ChatModel, limits: ServeLimits, api_key: str | None) -> Starlette:
    """The application. With an ``api_key`` every request but ``/health`` must carry it."""
    service = _Service(chat_model, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.engine = app.state.engine = InferenceEngine(limits.slots, limits.queue)
        yield
        service.engine.close()

    guard = functools.partial(_guarded, api_key=api_key)
    routes = [
        Route("/health", service.health),
        Route("/v1/models", guard(service.models)),
        Route("/v1/chat/completions", guard(service.chat), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


Handler = Callable[[Request], Awaitable[Response]]


def _guarded(handler: Handler, api_key: str | None) -> Handler:
    """Check the key, and turn errors into responses."""

    async def handle(request: Request) -> Response:
        try:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
                raise RequestError(401, "wrong or missing API key", code="invalid_api_key")
            return await handler(request)
        except RequestError as error:
            return JSONResponse(error.body(), error.status)
        except BafoError as error:
            return JSONResponse(RequestError(400, error.message).body(), 400)

    return handle


class _Service:
    """The handlers and their state."""

    engine: InferenceEngine

    def __init__(self, chat_model: ChatModel, limits: ServeLimits) -> None:
        self.chat_model = chat_model
        self.limits = limits
        self.started = int(time.time())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "computing": self.engine.computing, "waiting": self.engine.waiting})

    async def models(self, request: Request) -> Response:
        model = {"id": self.chat_model.name, "object": "model", "created": self.started, "owned_by": "bafogpt"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        asked = ChatRequest.parse(await _body(request, self.limits.body_bytes))
        if asked.model not in (None, self.chat_model.name):
            message = f"no model '{asked.model}'; this server has '{self.chat_model.name}'"
            raise RequestError(404, message, "model", "model_not_found")
        # in a thread, because a long prompt takes a while to format and tokenize
        prompt = await asyncio.to_thread(self.chat_model.prompt, asked.messages)
        max_tokens = self._max_tokens(asked, prompt)

        def answer() -> Any:
            return self.chat_model.answer(prompt, max_tokens=max_tokens, sampling=asked.sampling, stop=asked.stop)

        reply = _Reply(self.chat_model.name, len(prompt))
        chunks = self.engine.chunks(answer)
        try:
            if not asked.stream:
                whole: Response = await _unless_gone(request, reply.whole(chunks))
                return whole
            first = await _unless_gone(request, anext(chunks))  # a full queue is a status then, not a broken stream
        except QueueFullError:
            message = f"{self.limits.queue} requests wait already; try again later"
            raise RequestError(429, message, code="rate_limit_exceeded") from None
        events = reply.events(first, chunks, asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    def _max_tokens(self, asked: ChatRequest, prompt: list[int]) -> int:
        room = self.chat_model.context - len(prompt)
        if room < 1:
            message = f"the prompt has {len(prompt):,} tokens, the model {self.chat_model.context:,} positions"
            raise RequestError(400, message, "messages", "context_length_exceeded")
        most = min(room, self.limits.max_tokens or room)
        if asked.max_tokens is None:
            return min(most, self.limits.default_tokens)
        if asked.max_tokens > most:
            message = f"max_tokens is {asked.max_tokens:,}; at most {most:,} after a prompt of {len(prompt):,} tokens"
            raise RequestError(400, message, "max_tokens", "context_length_exceeded" if most == room else None)
        return asked.max_tokens


class _Reply:
    """One answer, in the form of OpenAI's objects."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    async def whole(self, chunks: AsyncIterator[AnswerChunk]) -> Response:
        texts, finish = [], None
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                texts.append(chunk.text)
                finish = chunk.finish
                self._count(chunk)
        message = {"role": "assistant", "content": "".join(texts)}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return JSONResponse(self._object("chat.completion", [choice], usage=self._usage()))

    async def events(
        self, first: AnswerChunk, chunks: AsyncIterator[AnswerChunk], include_usage: bool
    ) -> AsyncIterator[str]:
        """Server-sent events: the role, the chunks with text, the finish reason, ``[DONE]``."""
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            yield self._event({"role": "assistant", "content": ""}, None)
            chunk: AnswerChunk | None = first
            while chunk is not None:
                self._count(chunk)
                if chunk.text:
                    yield self._event({"content": chunk.text}, None)
                if chunk.finish:
                    yield self._event({}, chunk.finish)
                try:
                    chunk = await anext(chunks, None)
                except Exception as error:  # the status is sent already; the client's library raises this body
                    failed = RequestError(500, f"the answer broke off: {type(error).__name__}")
                    yield _sse(failed.body())
                    raise
            if include_usage:
                yield _sse(self._object("chat.completion.chunk", [], usage=self._usage()))
            yield "data: [DONE]\n\n"

    def _count(self, chunk: AnswerChunk) -> None:
        self.tokens += chunk.finish != "length"  # that chunk comes after the last token

    def _event(self, delta: dict[str, Any], finish: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _sse(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def _usage(self) -> dict[str, int]:
        whole = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": whole}


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _body(request: Request, limit: int) -> bytes:
    """The request's body. Raises :class:`RequestError` (413) where it is larger than ``limit`` bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise RequestError(413, f"the request is larger than {limit:,} bytes")
    return bytes(body)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of ``work``, which is cancelled when the client hangs up first."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(hung_up())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise RequestError(499, "the client has gone")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
