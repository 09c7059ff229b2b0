"""The network of a job that starts from a model folder of the bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from litgpt.config import Config

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.storage.bucket import Bucket
from bafogpt.train import memory_check, network, run
from bafogpt.train.config import ModelConfig, TrainConfig
from bafogpt.train.probes import step_probe
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder
from tests.published import load, save

from .conftest import Trained, tiny

IDS = 260
"""Of the dataset: bytes and four special ones."""


def job(**model: Any) -> TrainConfig:
    """Twelve small steps; the model section has nothing but ``model``."""
    return replace(tiny(), model=ModelConfig(**model))


def put(bucket: Bucket, path: Path, name: str) -> str:
    """A folder into the bucket, as ``models/NAME``."""
    for file in path.iterdir():
        bucket.upload(f"models/{name}/{file.name}", file)
    return f"models/{name}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``folders(name, **changes)``: a small model of a published shape; each is made once."""
    made: dict[str, Path] = {}

    def get(name: str, **changes: Any) -> Path:
        key = json.dumps([name, changes], sort_keys=True)
        if key not in made:
            made[key] = save(tmp_path_factory.mktemp("folder") / "model", name, **changes)
        return made[key]

    return get


@pytest.fixture
def gemma_3(starter: Bucket, folders: Callable[..., Path]) -> str:
    return put(starter, folders("gemma-3-4b"), "gemma-3")


Folders = Callable[..., Path]


@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-3-4b", "gemma-2-2b", "qwen3-0.6b"])
def test_the_first_loss_of_a_folders_network_is_that_of_transformers(
    name: str, folders: Folders, starter: Bucket, train: Callable[..., Trained], tmp_path: Path
) -> None:
    config = job(checkpoint=put(starter, folders(name), name))
    config = replace(config, tokens=512)

    made = train(config)

    assert [each.outcome for each in made.results] == ["finished"], made.output
    order = TrainOrder(bucket=starter.url, config=config)
    first = next(run.build_run(order, TrainerFiles(tmp_path / "again")).batches())
    theirs = load(folders(name))
    total = count = 0.0
    with torch.no_grad():
        for batch in first:
            logits = theirs(batch.ids).logits.flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="sum").item()
            count += batch.targets.numel()
    assert made.losses[1] == pytest.approx(total / count, rel=1e-5)
    assert made.losses[2] != made.losses[1]


def test_a_trained_gemma_3_is_exported_to_a_folder_of_its_family(
    gemma_3: str, train: Callable[..., Trained], folders: Folders, tmp_path: Path
) -> None:
    from bafogpt.model import export
    from bafogpt.model.formats.checkpoint import CheckpointFolder

    made = train(replace(job(checkpoint=gemma_3), tokens=256))

    checkpoint = CheckpointFolder.open(made.staged[-1].folder)
    export.write(export.from_checkpoint(checkpoint), tmp_path / "out", "hf")
    base, out = ModelFolder.open(folders("gemma-3-4b")), ModelFolder.open(tmp_path / "out")
    assert (out.content["model_type"], out.tied) == ("gemma3_text", True)
    assert replace(out.config, vocab_size=320) == base.config
    ids = torch.randint(IDS, (2, 60), generator=torch.Generator().manual_seed(1))
    from bafogpt.model.gpt import load_gpt

    with torch.no_grad():
        assert (load_gpt(out)(ids) - load(out.path)(ids).logits).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "Gemma-2-2b"}, "model.name Gemma-2-2b has n_layer 26, and {} has 7"),
        ({"overrides": {"n_layer": 6}}, "model.overrides.n_layer is 6, and {} has 7"),
        ({"overrides": {"sliding_window_size": 512}}, "sliding_window_size is 512, and {} has 16"),
        ({"overrides": {"rope_base": 10_000}}, "rope_base is 10000, and {} has 1000000"),
        ({"overrides": {"rope_local_base_freq": 500}}, "rope_local_base_freq is 500, and {} has 10000"),
        ({"overrides": {"rope_adjustments": {"factor": 4.0}}}, "is {{'factor': 4.0}}, and {} has {{'factor': 8.0}}"),
        ({"overrides": {"attention_logit_softcapping": 50.0}}, "softcapping is 50.0, and {} has None"),
        ({"overrides": {"norm_qk": False}}, "norm_qk is False, and {} has True"),
        ({"overrides": {"n_layers": 6}}, "no field 'n_layers'"),
    ],
)
def test_a_job_that_contradicts_the_folder_is_refused_with_both_values(
    gemma_3: str, starter: Bucket, model: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        network.resolve_network(job(checkpoint=gemma_3, **model), starter, IDS)

    assert words.format(f"{starter.url}/{gemma_3}/config.json") in error.value.message and error.value.hint


def test_a_name_with_the_right_sizes_but_other_windows_is_refused(folders: Folders, starter: Bucket) -> None:
    """All sizes are named; what is left of Gemma-2 is its windows, its ropes and its norms."""
    folder = ModelFolder.open(folders("gemma-3-4b"))
    sizes = {"n_layer", "n_embd", "n_head", "n_query_groups", "head_size", "intermediate_size", "block_size"}
    overrides = {key: getattr(folder.config, key) for key in [*sizes, "sliding_window_size"]}
    checkpoint = put(starter, folder.path, "gemma-3")

    same = network.resolve_network(job(checkpoint=checkpoint, name="Gemma-3-4b-it", overrides=overrides), starter, IDS)

    assert same.shape == replace(folder.config, vocab_size=IDS)
    with pytest.raises(ConfigError, match=r"model\.name Gemma-2-2b has norm_qk False"):
        network.resolve_network(job(checkpoint=checkpoint, name="Gemma-2-2b", overrides=overrides), starter, IDS)
    windows = {**overrides, "sliding_window_indices": [1, 0] * 3 + [1]}
    with pytest.raises(ConfigError, match=r"model\.overrides\.sliding_window_indices is \[1, 0"):
        network.resolve_network(job(checkpoint=checkpoint, name="Gemma-3-4b-it", overrides=windows), starter, IDS)


def test_the_head_is_tied_as_in_the_folder_unless_the_job_sets_it(folders: Folders, starter: Bucket) -> None:
    tied = put(starter, folders("gemma-3-270m"), "tied")
    own = put(starter, folders("gemma-3-270m", tie_word_embeddings=False), "own-head")

    def is_tied(checkpoint: str, **model: Any) -> bool:
        return network.resolve_network(job(checkpoint=checkpoint, **model), starter, IDS).tied

    assert (is_tied(tied), is_tied(own)) == (True, False)
    assert is_tied(tied, tie_embeddings=False) is False, "the head begins as a copy"
    with pytest.raises(ConfigError, match="has an output head of its own"):
        is_tied(own, tie_embeddings=True)


@pytest.mark.parametrize(("ids", "fits"), [(260, True), (320, True), (321, False), (384, False)])
def test_the_rows_must_be_those_of_the_dataset(ids: int, fits: bool, gemma_3: str, starter: Bucket) -> None:
    if fits:
        assert network.resolve_network(job(checkpoint=gemma_3), starter, ids).shape.padded_vocab_size == 320
        return
    with pytest.raises(ConfigError, match=f"320 rows in its vocabulary, the dataset's tokenizer {ids} ids"):
        network.resolve_network(job(checkpoint=gemma_3), starter, ids)


def test_a_folders_own_tokenizer_may_have_an_id_beyond_the_rows(folders: Folders, starter: Bucket) -> None:
    """Gemma-3's has 262,145 ids, and the model 262,144 rows."""
    checkpoint = put(starter, folders("gemma-3-4b"), "with-tokenizer")
    starter.put(f"{checkpoint}/tokenizer.json", b"{}")
    found = network.resolve_network(job(checkpoint=checkpoint), starter, 321).shape
    assert (found.vocab_size, found.padded_vocab_size) == (320, 320)
    with pytest.raises(ConfigError, match="320 rows"):
        network.resolve_network(job(checkpoint=checkpoint), starter, 384)


def test_a_new_network_is_built_by_name(starter: Bucket) -> None:
    plain = network.resolve_network(job(), starter, IDS)
    named = network.resolve_network(job(name="Gemma-3-270m", tie_embeddings=False), starter, IDS)

    assert (plain.shape.name, plain.shape.padded_vocab_size, plain.tied) == ("Gemma-2-2b", 320, True)
    assert (named.shape.n_layer, named.shape.rope_indices[5], named.tied) == (18, 0, False)


def test_new_rows_begin_at_the_lineages_base_size(folders: Folders, starter: Bucket) -> None:
    checkpoint = put(starter, folders("gemma-3-4b"), "with-lineage")
    config = job(checkpoint=checkpoint)
    config = replace(config, optimizer=replace(config.optimizer, new_rows_factor=4.0))
    found = network.resolve_network(config, starter, IDS)
    with pytest.raises(ConfigError, match=r"no tokenizer\.lineage\.json says which rows are new"):
        network.resolve_config(config, found, starter)
    starter.put(f"{checkpoint}/tokenizer.lineage.json", json.dumps({"base": {"size": 123}}).encode())
    assert network.resolve_config(config, found, starter).optimizer.first_new_row == 123


def test_the_probe_has_the_network_of_the_folder(
    gemma_3: str, starter: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(checkpoint=gemma_3)
    shape = network.resolve_network(config, starter, IDS).shape
    tried: list[step_probe.Trial] = []

    def probe(trial: step_probe.Trial) -> step_probe.Peak:
        tried.append(schema.build(step_probe.Trial, json.loads(json.dumps(asdict(trial))), where="trial"))
        return step_probe.Peak(fits=True)

    monkeypatch.setattr(memory_check, "_probe", probe)
    memory_check.probe_micro_batch(shape, config, micro_batch=2, sharding="step", documents=False)

    assert Config(**tried[0].network) == shape
    learner = next(step_probe.steps(replace(tried[0], device="cpu")))
    assert learner.state.model.config == shape
