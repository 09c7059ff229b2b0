"""``bafogpt model pull`` from a Hub of the test's own: what is taken, what is left, loaded by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bafogpt.cli import main as command_line
from bafogpt.core.errors import NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.folders.uri import locate
from bafogpt.model import pull
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.storage.bucket import Bucket

from .conftest import REPO, Copy
from .server import Hub


@pytest.fixture
def published(tmp_path: Path, hub: Hub, copy: Copy) -> Any:
    """A small Gemma-2 on the Hub, with files beside it that no model needs."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(vocab_size=256, num_key_value_heads=2, head_dim=8, **sizes)
    model = Gemma2ForCausalLM(config).eval()
    folder = tmp_path / "published"
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"not this one")
    (folder / "gemma.gguf").write_bytes(b"nor this")
    (folder / "LICENSE.txt").write_text("the terms")
    copy(str(folder), REPO)
    return model


def test_pull_takes_only_the_files_of_a_model(published: Any, settings: Settings, tmp_path: Path, capsys: Any):
    out = tmp_path / "pulled"

    assert command_line.main(["model", "pull", REPO.removeprefix("hf://"), str(out), "--json"]) == 0

    record = json.loads(capsys.readouterr().out)
    assert (record["layers"], record["vocabulary"], record["tied"]) == (2, 256, True)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json", "generation_config.json"} <= names
    assert (out / "LICENSE.txt").read_text() == "the terms"
    assert not names & {"pytorch_model.bin", "original", "gemma.gguf", "README.md"}
    from transformers import AutoModelForCausalLM

    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, published(ids).logits)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert command_line.main(["model", "pull", REPO.removeprefix("hf://"), str(out)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before, "fetched once"
    assert command_line.main(["model", "show", str(out)]) == 0
    assert "2 layers of width 32, vocabulary 256, tied embeddings" in capsys.readouterr().out


def test_pull_goes_from_the_hub_to_a_bucket_and_from_there_to_a_folder(
    published: Any, settings: Settings, bucket: Bucket, tmp_path: Path
):
    assert command_line.main(["model", "pull", REPO, f"{bucket.url}/models/small"]) == 0

    folder = pull.fetch(locate(f"{bucket.url}/models/small", settings), tmp_path / "here", settings)

    assert folder.config.n_layer == 2
    assert ModelFolder.open(tmp_path / "here").bytes == folder.bytes


def test_a_repository_without_safetensors_is_refused(tmp_path: Path, hub: Hub, copy: Copy, settings: Settings):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    copy(str(folder), REPO)

    with pytest.raises(NotFoundError, match="with safetensors beside it"):
        pull.prepare(pull.source_of(REPO, settings), locate(str(tmp_path / "out"), settings, "local"))

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("google/gemma-2-2b", "hf://google/gemma-2-2b"),
        ("hf://google/gemma-2-2b@main", "hf://google/gemma-2-2b@main"),
        ("models/zulu", "s3://bucket/p/models/zulu"),
        ("s3://other/models/zulu", "s3://other/models/zulu"),
    ],
)
def test_names_of_the_hub_and_of_the_bucket_are_distinguished(text: str, url: str):
    assert pull.source_of(text, Settings(bucket="s3://bucket/p")).url == url
