from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflows.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A copy of the project with an empty ``.venv`` and a stand-in for every outer command."""
    return Tree(tmp_path / "project")
