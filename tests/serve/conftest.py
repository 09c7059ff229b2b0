"""A real server on a real socket, with a tiny model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from bafogpt.model.chat_model import ChatModel
from bafogpt.serve import server as run
from bafogpt.serve.app import ServeLimits, make_app
from bafogpt.serve.engine import InferenceEngine

from ..talking import make_model

KEY = "sesame"


@dataclass(frozen=True)
class Server:
    url: str
    app: Any

    @property
    def engine(self) -> InferenceEngine:
        engine: InferenceEngine = self.app.state.engine
        return engine

    def idle(self, seconds: float = 20) -> bool:
        """Whether no answer is computed and no request waits, within that time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.engine.computing and not self.engine.waiting:
                return True
            time.sleep(0.01)
        return False

    def post(self, body: Any, key: str = KEY) -> httpx.Response:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/chat/completions", **content, headers=headers, timeout=60)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def chat_model(folder: Path) -> ChatModel:
    torch.set_num_threads(1)
    return ChatModel.load(folder, device="cpu")


@pytest.fixture
def start(chat_model: ChatModel) -> Iterator[Callable[..., Server]]:
    """``start(slots=2, queue=9, …)``: a server with these limits, until the test is over."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def started(**limits: Any) -> Server:
        listening = run.listen("127.0.0.1", 0, guarded=True)
        app = make_app(chat_model, ServeLimits(**limits), KEY)
        server = run.make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return Server(run.address(listening) + "/v1", app)

    yield started
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start()
