"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from bafogpt.data.messages import Message
from bafogpt.model.cache import KVCache
from bafogpt.model.chat_model import AnswerChunk, ChatModel
from bafogpt.model.generate import Sampling

from .conftest import KEY, Server

HELLO: list[Any] = [{"role": "user", "content": "Sawubona!"}]


def client(server: Server, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=120)


def expected(chat_model: ChatModel, max_tokens: int, seed: int) -> str:
    prompt = chat_model.prompt([Message("user", "Sawubona!")])
    chunks = chat_model.answer(prompt, max_tokens=max_tokens, sampling=Sampling(seed=seed))
    return "".join(chunk.text for chunk in chunks)


def test_openais_client_streams_the_answer_that_the_model_gives(server: Server, chat_model: ChatModel) -> None:
    stream = client(server).chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=60, seed=5, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == expected(chat_model, 60, seed=5)
    assert sum(map(bool, texts)) > 10  # in pieces, not at once
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert usage.usage.completion_tokens == 60
    assert server.idle()


def test_without_streaming_the_answer_is_the_same_and_counted(server: Server, chat_model: ChatModel) -> None:
    answer = client(server).chat.completions.create(model="tiny", messages=HELLO, max_tokens=60, seed=5)
    assert answer.choices[0].message.content == expected(chat_model, 60, seed=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    prompt = len(chat_model.prompt([Message("user", "Sawubona!")]))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 60)


def test_a_stop_string_ends_the_answer_before_it(server: Server, chat_model: ChatModel) -> None:
    whole = expected(chat_model, 60, seed=5)
    stop = next(letter for letter in whole[5:] if letter.isascii() and letter.isprintable())
    answer = client(server).chat.completions.create(model="tiny", messages=HELLO, max_tokens=60, seed=5, stop=stop)
    assert answer.choices[0].message.content == whole.partition(stop)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_models_and_health(server: Server) -> None:
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    health = httpx.get(server.url.removesuffix("/v1") + "/health")
    assert health.json() == {"status": "ok", "computing": 0, "waiting": 0}


def test_32_clients_at_once_one_of_which_hangs_up_and_nothing_leaks(server: Server, chat_model: ChatModel) -> None:
    def ask(number: int) -> str:
        with client(server) as openai_client:
            stream = openai_client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=400 if number == 7 else 24, seed=number, stream=True
            )
            texts = []
            for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")
                if number == 7 and len(texts) > 5:
                    stream.close()
                    break
            return "".join(texts)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    for number, answer in enumerate(answers):
        whole = expected(chat_model, 400 if number == 7 else 24, seed=number)
        assert answer == whole if number != 7 else whole.startswith(answer)
    assert server.idle()
    assert sum(type(each) is KVCache for each in gc.get_objects()) == 0
    assert sum(thread.name.startswith("answer") for thread in threading.enumerate()) <= server.engine.slots
    assert client(server).chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, seed=1)


@pytest.mark.parametrize("streaming", [True, False])
def test_nothing_more_is_computed_for_a_client_that_hangs_up(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    server = start(slots=1)
    made: list[AnswerChunk] = []
    answer = ChatModel.answer

    def counted(*given: Any, **options: Any) -> Iterator[AnswerChunk]:
        for chunk in answer(*given, **options):
            made.append(chunk)
            time.sleep(0.02)
            yield chunk

    monkeypatch.setattr(ChatModel, "answer", counted)
    request = {"messages": HELLO, "max_tokens": 480, "seed": 1, "stream": streaming}
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{server.url}/chat/completions"
    gives_up = contextlib.suppress(httpx.ReadTimeout)
    with gives_up, httpx.stream("POST", url, json=request, headers=headers, timeout=0.5) as response:
        next(response.iter_raw())
    assert server.idle()
    assert 0 < len(made) < 400


def test_a_full_queue_is_429_and_free_again_afterwards(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(slots=1, queue=0)
    release = threading.Event()
    answer = ChatModel.answer

    def held(*given: Any, **options: Any) -> Iterator[AnswerChunk]:
        for chunk in answer(*given, **options):
            yield chunk
            release.wait(60)

    monkeypatch.setattr(ChatModel, "answer", held)
    request = {"messages": HELLO, "max_tokens": 9}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, request)
        while not server.engine.computing:
            time.sleep(0.01)
        for streaming in (True, False):
            refused = server.post({**request, "stream": streaming})
            assert refused.status_code == 429
            assert "0 requests wait already" in refused.json()["error"]["message"]
        release.set()
        assert first.result().status_code == 200
    assert server.idle()
    assert server.post(request).status_code == 200


def test_a_wrong_key_is_401(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="wrong or missing API key"):
        client(server, "wrong").models.list()
    assert httpx.post(f"{server.url}/chat/completions", json={"messages": HELLO}).status_code == 401


BAD: dict[str, tuple[Any, int, str]] = {
    "a huge max_tokens": ({"messages": HELLO, "max_tokens": 10**12}, 400, "max_tokens is 1,000,000,000,000; at most"),
    "no tokens": ({"messages": HELLO, "max_tokens": 0}, 400, "max_tokens is 0"),
    "half a token": ({"messages": HELLO, "max_tokens": 1.5}, 400, "'max_tokens' is not a whole number"),
    "a long prompt": ({"messages": [{"role": "user", "content": "a" * 600}]}, 400, "the model 512 positions"),
    "a huge body": (b"[" * (5 << 20), 413, "larger than 4,194,304 bytes"),
    "not UTF-8": (b'{"messages": "\xff"}', 400, "the body is not UTF-8: byte 14"),
    "not JSON": (b"{messages", 400, "the body is not JSON"),
    "nested too deep": (b"[" * 200_000, 400, "the body is not JSON"),
    "a list": (b"[]", 400, "not a JSON object"),
    "half a surrogate pair": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "half a surrogate pair"),
    "no messages": ({}, 400, "'messages' is not a list"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]: role is 'tool'"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content is not text"),
    "an answer last": ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "not the user's"),
    "turns out of order": ({"messages": [*HELLO, *HELLO]}, 400, "must take turns"),
    "another model": ({"messages": HELLO, "model": "gpt-4"}, 404, "no model 'gpt-4'; this server has 'tiny'"),
    "two answers": ({"messages": HELLO, "n": 2}, 400, "'n' is not supported"),
    "a hot temperature": ({"messages": HELLO, "temperature": -1}, 400, "temperature is -1"),
    "a temperature in words": ({"messages": HELLO, "temperature": "hot"}, 400, "'temperature' is not a number"),
    "an empty stop": ({"messages": HELLO, "stop": ""}, 400, "'stop' is not a text"),
}


@pytest.mark.parametrize(("body", "status", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_an_error_that_names_the_fault(server: Server, body: Any, status: int, message: str) -> None:
    answer = server.post(body if isinstance(body, bytes) else {"max_tokens": 4, **body})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]
    assert server.idle()
