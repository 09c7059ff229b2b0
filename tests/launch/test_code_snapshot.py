"""The code that a launch sends: the commit when the tree is clean, what git does not ignore when it is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bafogpt.core.errors import ConfigError, UsageError
from bafogpt.launch import code_snapshot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit and an ignored file."""
    root = tmp_path / "tree"
    (root / "jobs").mkdir(parents=True)
    (root / "jobs/x.yaml").write_text("a: 1\n")
    (root / ".gitignore").write_text("secret\n")
    (root / "secret").write_text("planted")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    return root


def sent(root: Path) -> dict[str, str]:
    folder = code_snapshot.export(root, root.parent / "sent")
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_clean_tree_is_sent_as_its_commit(tree: Path):
    assert sent(tree) == {"jobs/x.yaml": "a: 1\n", ".gitignore": "secret\n"}
    assert str(code_snapshot.current_version(tree)) == code_snapshot.current_version(tree).commit
    code_snapshot.require_clean(tree)


def test_a_tree_with_changes_is_sent_as_it_is_and_named_by_them(tree: Path):
    (tree / "jobs/x.yaml").write_text("a: 2\n")
    changed = str(code_snapshot.current_version(tree))
    (tree / "new.py").write_text("new")
    assert sent(tree) == {"jobs/x.yaml": "a: 2\n", ".gitignore": "secret\n", "new.py": "new"}
    both = str(code_snapshot.current_version(tree))
    (tree / "new.py").write_text("newer")
    assert "+dirty." in changed and len({changed, both, str(code_snapshot.current_version(tree))}) == 3
    (tree / "new.py").write_text("new")
    assert str(code_snapshot.current_version(tree)) == both
    with pytest.raises(UsageError, match="not committed"):
        code_snapshot.require_clean(tree)


def test_a_removed_file_is_not_sent(tree: Path):
    (tree / "jobs/x.yaml").unlink()
    assert sent(tree) == {".gitignore": "secret\n"}


def test_outside_a_repository_the_folder_is_sent_and_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "a").write_text("1")
    assert sent(folder) == {"a": "1"} and str(code_snapshot.current_version(folder)) == ""
    with pytest.raises(UsageError, match="not in a git repository"):
        code_snapshot.require_clean(folder)


def test_data_that_lies_about_is_not_sent_with_the_code(tree: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code_snapshot, "MAX_BYTES", 100)
    (tree / "shard.bin").write_text("x" * 200)
    with pytest.raises(ConfigError, match="to send"):
        code_snapshot.export(tree, tree.parent / "sent")
