"""A home with a SkyPilot catalog in it, for tests about prices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CATALOG = Path(__file__).parent / "catalog"
"""Written for these tests; the prices are invented."""


def install_catalog(home: Path, monkeypatch: pytest.MonkeyPatch, source: Path = CATALOG) -> Path:
    """Make ``home`` the home, with the catalog where SkyPilot keeps its own; returns the catalog's folder."""
    folder = home / ".sky" / "catalogs" / "v8"
    shutil.copytree(source, folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SKY_RUNTIME_DIR", raising=False)
    return folder
