from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflows.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A copy of the project where nothing is installed and every outer command is to be stood in for."""
    return Tree(tmp_path / "project")
