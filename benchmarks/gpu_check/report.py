"""What a part finds, written down at once: a crash, a hang or a kill later in the part does not lose it."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DONE = "done"
"""Key of the last line of a part that came to its end."""
ERROR_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every part is told."""

    tiny: bool = False
    """Toy sizes on the CPU: shows that the parts run, and measures nothing."""
    layers: int = 26
    """Layers of the large models; Gemma-2-2B has 26."""


@dataclass(kw_only=True)
class Report:
    """Findings of one part, one JSON line each in the file ``to``."""

    to: Path
    seconds: float
    """The part is killed after this long."""
    options: Options = field(default_factory=Options)
    earlier: Sequence[Mapping[str, Any]] = ()
    """The lines of the parts before this one."""
    began: float = field(default_factory=time.monotonic)

    @property
    def tiny(self) -> bool:
        return self.options.tiny

    @functools.cached_property
    def device(self) -> Any:
        """The :class:`torch.device` that is checked. Raises RuntimeError where there is no GPU and not ``tiny``."""
        import torch

        if self.tiny:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU (--tiny runs on a CPU)")
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        return device

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.seconds - (time.monotonic() - self.began)

    def note(self, name: str, value: Any, *, ok: bool = True) -> None:
        """A finding. One that is not ``ok`` makes the part red; the part goes on."""
        self._write({"name": name, "value": value, "ok": ok})

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """An exception inside is a finding that makes the part red; the part goes on after the block."""
        try:
            yield
        except Exception as error:
            self.note(name, {"error": f"{type(error).__name__}: {str(error)[:ERROR_CHARACTERS]}"}, ok=False)

    def say_device(self) -> None:
        """Write the device's name down."""
        import torch

        self._write({"device": "CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)})

    def finish(self) -> None:
        """The part came to its end."""
        self._write({DONE: True})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.to.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_rounded(line), default=str) + "\n")


def _rounded(value: Any) -> Any:
    """Floats to five digits, NaN and infinities as text, because JSON has none."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
