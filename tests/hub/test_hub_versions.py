"""The same with the Hub's client of the next major version, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPO, content, write_model
from .server import Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with huggingface_hub 2.x and what it needs."""
    folder = tmp_path_factory.mktemp("hub-2")
    words = ["install", "-q", "--target", str(folder), "huggingface_hub>=2,<3"]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("huggingface_hub 2.x cannot be installed here")
    return folder


@pytest.mark.slow
def test_huggingface_hub_2_pushes_pulls_and_resumes(client: Path, hub: Hub, tmp_path: Path):
    size = 12_000_000
    hub.part_bytes, hub.large_bytes = 4 << 20, 10_000_000
    write_model(tmp_path / "model", size)
    environment = {**os.environ, "PYTHONPATH": str(client), "BAFOGPT_HOME": str(tmp_path / "home")}

    def start(*words: str | Path) -> subprocess.Popen[str]:
        script = (
            "import sys, huggingface_hub; from bafogpt.cli.main import main;"
            "assert huggingface_hub.__version__.startswith('2.'); sys.exit(main())"
        )
        command = [sys.executable, "-c", script, "storage", *map(str, words)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def run(*words: str | Path) -> None:
        with start(*words) as process:
            _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said

    hub.hold_after(size * 3 // 2)
    with start("push", tmp_path / "model", REPO) as process:
        assert hub.held.wait(60)
        process.kill()
    hub.release()
    run("push", tmp_path / "model", REPO)
    assert hub.up <= 2 * size + hub.part_bytes
    assert hub.repos["zulu/model"].private
    assert len(hub.repos["zulu/model"].commits) == 2
    run("pull", REPO, tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "model")

    del environment["HF_TOKEN"]
    with start("pull", REPO, tmp_path / "no") as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "HF_TOKEN is not set" in said) == (4, True), said
