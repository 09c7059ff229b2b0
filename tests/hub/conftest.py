"""A Hub of the test's own, and a model to push."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from bafogpt.core.settings import Settings
from bafogpt.folders.hub import push as hub_push
from bafogpt.folders.sync import SyncReport, execute, prepare
from bafogpt.folders.uri import FolderLocation, locate

from ..conftest import S3
from .server import Hub

REPO = "hf://zulu/model"
LARGE = 1_000_000
"""What a large file is in these tests, here and at the Hub; so that a model of a few MB has some."""
BIG = 1_200_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in Hub that this process, and those it starts, take for the Hub."""
    (tmp_path / "hub").mkdir()
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_ENABLE_HF_TRANSFER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as its variable does where it is set before the import
    monkeypatch.setattr(hub_push, "LARGE_BYTES", LARGE)
    with Hub(tmp_path / "hub", part_bytes=256 << 10, large_bytes=LARGE).running() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def settings(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The session's S3 server by its URL, and a home of the test's own for what a push must remember."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return replace(s3.settings, s3_endpoint=s3.environment["BAFOGPT_S3_ENDPOINT"], home=str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder: two large files, two small ones, one of them nested."""
    folder = tmp_path / "model"
    write_model(folder, BIG)
    return folder


def write_model(folder: Path, size: int, seed: int = 0) -> None:
    """Two files of ``size`` bytes and two small ones."""
    source = random.Random(seed)
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        with (folder / name).open("wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(source.randbytes(min(1 << 20, size - start)))
    (folder / "config.json").write_bytes(b'{"seed": %d}' % seed)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


Copy = Callable[..., SyncReport]


@pytest.fixture
def copy(settings: Settings) -> Copy:
    """``copy(source, target)``: both as on the command line, or paths."""

    def run(source: str | Path, target: str | Path, **options: bool) -> SyncReport:
        def place(what: str | Path) -> FolderLocation:
            return locate(str(what), settings)

        return execute(prepare(place(source), place(target)), **options)

    return run
