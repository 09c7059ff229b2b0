"""A program in place of ``nvidia-smi``: it prints what a test says, hangs, fails or babbles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class FakeSmi:
    """``nvidia-smi`` of this test, first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def script(self, body: str) -> None:
        """What it does, as a shell script."""
        path = self._folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def gpus(
        self,
        *names: str,
        driver: str = "580.95.05",
        used: int = 3,
        total: int = 46068,
        programs: str = "",
    ) -> None:
        """GPUs of these names, ``used`` of ``total`` MiB in use; ``programs`` in the CSV that it lists them in."""
        lines = [
            f"{index}, GPU-{index}, {name}, {driver}, 0, {used}, {total}, 35, 20.5" for index, name in enumerate(names)
        ]
        (self._folder / "gpus.csv").write_text("".join(f"{line}\n" for line in lines))
        (self._folder / "programs.csv").write_text(programs)
        here = self._folder
        self.script(f'case "$1" in --query-gpu*) cat {here}/gpus.csv;; *) cat {here}/programs.csv;; esac')
