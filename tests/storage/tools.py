"""What the tests of storage share: folders compared, calls recorded, bits flipped, a clock that only sleeping moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core.errors import UnreachableError
from bafogpt.storage.bucket import Bucket


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path; of a model folder without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def damage(bucket: Bucket, path: str, at: int | None = None) -> None:
    """Flip a bit of an object."""
    data = bytearray(bucket.get(path))
    data[len(data) // 2 if at is None else at] ^= 1
    bucket.put(path, bytes(data))


def record(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    key: Callable[..., Any] = lambda *arguments, **_: arguments[0],
    *,
    fail_at: int | None = None,
) -> list[Any]:
    """``key`` of the arguments of every call of ``owner.name`` from now on; the call number ``fail_at`` fails."""
    calls: list[Any] = []
    original = getattr(owner, name)

    def recorded(*arguments: Any, **options: Any) -> Any:
        calls.append(key(*arguments, **options))
        if len(calls) == fail_at:
            raise UnreachableError("the connection is lost", "wait")
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, recorded)
    return calls


class Clock:
    """Time that only :meth:`sleep` moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
