"""Which published model a card names where a run began with a model folder of the bucket."""

from __future__ import annotations

import json

import pytest

from bafogpt.reports import model_card
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.reports.synthetic import SyntheticRun

SMALL = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 2048,
}


@pytest.mark.parametrize(
    ("changed", "name", "base"),
    [
        ({}, None, "google/gemma-3-270m"),
        ({}, "Gemma-2-9b", "google/gemma-2-9b"),
        ({"hidden_size": 128}, None, ""),
        ({"model_type": "mamba"}, None, ""),
    ],
    ids=["by its sizes", "by its name", "of another size", "of another family"],
)
def test_the_base_of_a_run_is_named_by_the_folder_that_it_began_with(
    bucket: Bucket, tmp_path, changed: dict[str, object], name: str | None, base: str
):
    bucket.put("models/base/config.json", json.dumps({**SMALL, **changed}).encode())
    run = SyntheticRun(RunStore(bucket), tmp_path)
    run.begin()
    run.start(0)
    run.train(1, 2)
    run.end("succeeded")
    run.save(job={"train": {"model": {"name": name, "checkpoint": "models/base"}, "data": {"path": "data/none"}}})

    found = model_card.facts(bucket, run.store.names()[0], 2)

    assert found["base_model"] == base
