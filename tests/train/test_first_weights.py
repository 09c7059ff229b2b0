"""First weights of a run, and its model exported and loaded elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bafogpt.cli import main as command_line
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, RunNotFoundError
from bafogpt.model import export, runs
from bafogpt.model.formats import param_names
from bafogpt.model.formats.checkpoint import CheckpointFolder
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.train.config import ModelConfig, TrainConfig

from .conftest import Trained, tiny

Train = Callable[..., Trained]


def uploaded(bucket: Bucket, name: str, made: Trained) -> None:
    """What the supervisor would have put into the bucket of a run."""
    last = made.staged[-1]
    run = bucket.child(f"runs/{name}")
    job = {"train": {"data": {"path": "data/starter"}, "model": {"name": "Gemma-2-2b"}}}
    run.put("run.json", json.dumps({"name": name, "job": job}).encode())
    store = CheckpointStore(run.child("checkpoints"))
    store.upload(last.folder, step=last.step, samples=last.samples, upload_id="u", metadata={})


def their_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.fixture
def finished(train_once: Callable[[TrainConfig], Trained], starter: Bucket) -> Callable[[bool], Trained]:
    """``finished(tied)``: a run with that head, which is ``runs/over-true`` or ``runs/over-false`` of the bucket."""

    def get(tied: bool) -> Trained:
        made, name = train_once(tiny(model={"tie_embeddings": tied})), f"over-{tied}".lower()
        if not starter.exists(f"runs/{name}/run.json"):
            uploaded(starter, name, made)
        return made

    return get


@pytest.mark.parametrize(
    ("tied", "processes"),
    [
        pytest.param(False, 1, id="untied"),
        pytest.param(True, 2, id="tied-on-two-processes", marks=pytest.mark.slow),
    ],
)
def test_a_run_starts_alike_from_a_run_and_from_its_exported_folder(
    train: Train, finished: Callable[[bool], Trained], tmp_path: Path, tied: bool, processes: int
):
    first, name, out = finished(tied), f"over-{tied}".lower(), tmp_path / "exported"

    assert command_line.main(["model", "export", f"runs/{name}", "--out", str(out), "--shard-gb", "0.0002"]) == 0
    folder = ModelFolder.open(out)
    assert folder.tied == tied and (out / "model.safetensors.index.json").exists()
    saved = CheckpointFolder.open(first.staged[-1].folder)
    assert all(torch.equal(weight.tensor(), folder.weights[key].tensor()) for key, weight in saved.weights.items())
    assert command_line.main(["storage", "push", str(out), f"models/{name}"]) == 0

    def start(checkpoint: str) -> Trained:
        return train(replace(tiny(), model=ModelConfig(checkpoint=checkpoint)), processes=processes)

    from_run, from_folder = start(f"runs/{name}"), start(f"models/{name}")
    named = tiny(model={"tie_embeddings": tied, "checkpoint": f"runs/{name}"})

    assert from_folder.losses == from_run.losses == train(named, processes=processes).losses
    assert from_folder.losses[1] < first.losses[1], "it goes on from what was learned"
    if processes == 2:
        checkpoint = from_run.staged[-1].folder
        assert CheckpointFolder.open(checkpoint).step == 12
        sorted(checkpoint.glob("*.safetensors"))[0].unlink()
        with pytest.raises(CorruptError):
            CheckpointFolder.open(checkpoint)


def test_an_exported_run_has_the_runs_logits_in_transformers_and_in_litgpt(
    finished: Callable[[bool], Trained], starter: Bucket, tmp_path: Path
):
    from litgpt.config import Config
    from litgpt.model import GPT

    finished(False)
    model = runs.fetch(starter, runs.find(starter, "over-false"), tmp_path / "scratch")
    assert model.companions == (), "its data is bytes"

    export.write(model, tmp_path / "hf", "hf")
    export.write(model, tmp_path / "lit", "litgpt")

    network = GPT(Config.from_checkpoint(tmp_path / "lit")).eval()
    network.load_state_dict(torch.load(tmp_path / "lit" / "lit_model.pth", weights_only=True, mmap=True), strict=True)
    assert network.config.norm_eps == 1e-6
    assert not torch.equal(network.lm_head.weight, network.transformer.wte.weight)
    ids = torch.randint(320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(their_logits(tmp_path / "hf", ids), network(ids), atol=1e-5, rtol=0)


def test_a_model_that_does_not_fit_the_job_is_refused_before_a_step(
    train: Train, finished: Callable[[bool], Trained], tmp_path: Path
):
    export.write(export.open_folder(finished(True).staged[-1].folder), tmp_path / "other", "hf")
    assert command_line.main(["storage", "push", str(tmp_path / "other"), "models/plain"]) == 0
    (tmp_path / "other" / "tokenizer.json").write_text("{}")
    assert command_line.main(["storage", "push", str(tmp_path / "other"), "models/other"]) == 0

    def error(**model: Any) -> str:
        (result,) = train(tiny(model=model)).results
        assert (result.outcome, result.retry) == ("failed", False)
        return result.error

    wrong = error(checkpoint="models/plain", overrides={"intermediate_size": 96})
    assert "intermediate_size is 96, and" in wrong and "models/plain/config.json has 128" in wrong
    assert "the data was made with another tokenizer" in error(checkpoint="models/other")
    assert "neither a model folder nor a run" in error(checkpoint="models/nothing")


def test_a_missing_step_or_run_is_named(finished: Callable[[bool], Trained], starter: Bucket):
    finished(True)

    with pytest.raises(NotFoundError, match=r"no complete checkpoint of step 7 \(available: 12\)"):
        runs.find(starter, "over-true", step=7)
    with pytest.raises(RunNotFoundError, match="did you mean 'over-tr"):
        runs.find(starter, "over-tru")


def test_an_export_converts_its_weights_and_config(finished: Callable[[bool], Trained], tmp_path: Path):
    model = export.open_folder(finished(True).staged[-1].folder)

    export.write(model.as_dtype("bfloat16"), tmp_path / "half", "hf")

    folder = ModelFolder.open(tmp_path / "half")
    whole = model.weights[param_names.HF_EMBEDDING].tensor()
    assert folder.content["torch_dtype"] == "bfloat16"
    assert torch.equal(folder.weights[param_names.HF_EMBEDDING].tensor(), whole.bfloat16())
    with pytest.raises(ConfigError, match="'int3' is not known"):
        model.as_dtype("int3")
