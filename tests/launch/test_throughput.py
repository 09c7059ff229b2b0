"""The expected speed of a job: sizes compared with litgpt's, and earlier runs from a real bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError
from bafogpt.jobs import model_shape
from bafogpt.jobs.job import Job
from bafogpt.launch import throughput
from bafogpt.launch.throughput import MeasuredThroughput, expected
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.estimates import flops, memory
from tests.reports.synthetic import NAME, SyntheticRun

SEED_RUN_TOKENS_PER_S = 1543.0
"""The speed on four L40 of the isiZulu run that jobs/pretrain.yaml improves on."""


def job(**train: Any) -> Job:
    """Two hundred million tokens on Gemma-2-2B, as in jobs/pretrain.yaml."""
    values = {"tokens": 200_000_000, "data": {"path": "data/zulu", "sequence_length": 2048}}
    return schema.build(Job, {"train": schema.merge(values, train)}, where="test")


@pytest.mark.parametrize("name", model_shape.KNOWN)
def test_the_known_sizes_equal_litgpts(name):
    pytest.importorskip("litgpt")
    from bafogpt.model.formats.families import configuration

    config = configuration(name)
    assert config.padded_vocab_size == model_shape.KNOWN[name].padded_vocab_size
    for length in (2048, 8192):
        mine = flops.flops_per_token(model_shape.KNOWN[name], length)
        assert mine == flops.flops_per_token(config, length) > 0


def test_the_number_of_weights_equals_the_models():
    pytest.importorskip("litgpt")
    from litgpt.config import Config
    from litgpt.model import GPT

    small = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "head_size": 8, "intermediate_size": 64}
    config = Config.from_name("Gemma-2-2b", padded_vocab_size=256, sliding_window_indices=[1, 0], **small)
    matrices = sum(
        each.numel() for name, each in GPT(config).named_parameters() if each.ndim == 2 and "wte" not in name
    )
    shape = model_shape.shape_of(job(model={"overrides": small}).train, vocab_size=250)

    assert shape is not None
    assert flops.matrix_weights(shape) == matrices == flops.matrix_weights(config)


def test_the_seed_run_took_a_day_and_a_half_and_used_a_thirtieth_of_the_gpus():
    speed = expected(job(), "L40", 4, tokens_per_s=SEED_RUN_TOKENS_PER_S)

    assert speed is not None
    assert speed.basis == "given"
    assert 200_000_000 / speed.tokens_per_s / 3600 == pytest.approx(36.0, abs=0.05)
    assert speed.mfu == pytest.approx(0.035, abs=0.001)


def test_without_an_earlier_run_the_speed_is_projected_and_labelled():
    speed, projection = expected(job(), "L40", 4), throughput.projected(job(), "L40", 4)

    assert speed is not None and projection is not None
    assert (speed.basis, speed.description) == ("projected", f"projected: MFU {100 * projection.recipe.time.mfu:.0f} %")
    assert speed.tokens_per_s == projection.recipe.time.tokens_per_s
    assert projection.pessimistic.time.tokens_per_s < speed.tokens_per_s
    assert "products at 72% of 181 TFLOP/s" in projection.assumptions["expected"]
    assert "8 GB/s between GPUs" in projection.assumptions["pessimistic"]


QLORA = {"model": {"name": "Gemma-2-9b"}, "adapter": {}, "precision": "bf16-true", "batch": {"micro_batch_size": 1}}


@pytest.mark.parametrize(
    ("train", "processes", "fits_below"),
    [
        ({}, 4, 48e9),
        ({"activation_checkpointing": "none", "batch": {"micro_batch_size": 1}}, 1, None),
        (QLORA, 1, 12e9),
    ],
    ids=["pretraining on 4", "pretraining on 1", "QLoRA"],
)
def test_a_plan_and_the_trainer_need_the_same_memory(bucket, monkeypatch, train, processes, fits_below):
    """Two memory models once gave QLoRA of Gemma-2-9b 74 GB in the plan and 10 GB in the trainer."""
    pytest.importorskip("litgpt")
    from bafogpt.train import memory_check, network, parallel

    planned = job(**train)
    projection = throughput.projected(planned, "L40", processes, vocab_size=296_000)
    assert projection is not None
    recipe = projection.recipe
    monkeypatch.setattr(parallel, "device_bytes", lambda _: projection.gpu.memory)
    monkeypatch.setattr(parallel, "world_size", lambda: processes)
    shape = network.resolve_network(planned.train, bucket, 296_000).shape

    if fits_below is None:
        assert not recipe.fits
        with pytest.raises(ConfigError, match=f"needs some {recipe.memory_bytes / 1e9:.1f} GB a process"):
            memory_check.choose_micro_batch(shape, planned.train, gpu=True)
        return
    chosen = memory_check.choose_micro_batch(shape, planned.train, gpu=True)
    needed = memory.estimate(
        shape, planned.train, micro_batch=chosen[0], processes=processes, gpu=True, sharding=chosen[1]
    )
    assert (recipe.fits, recipe.micro_batch, recipe.sharding, recipe.memory_bytes) == (True, *chosen, needed.total)
    assert needed.total < fits_below


def test_more_machines_share_a_slower_network():
    one, two = (throughput.projected(job(), "L40", 8, nodes=nodes) for nodes in (1, 2))

    assert one is not None and two is not None
    assert two.recipe.time.communication > one.recipe.time.communication


def test_larger_gemma_3_models_are_slower():
    speeds = [expected(job(model={"name": f"Gemma-3-{size}"}), "L40", 4) for size in ("270m", "1b-it", "4b-pt")]

    assert all(speed is not None and speed.basis == "projected" for speed in speeds)
    assert speeds == sorted(speeds, key=lambda speed: -speed.tokens_per_s)


def test_a_network_that_only_the_checkpoint_defines_has_no_projection_without_it():
    assert throughput.projected(job(model={"checkpoint": "models/zulu"}), "L40", 4) is None


def test_the_sizes_of_a_network_are_read_from_its_folder_in_the_bucket(bucket):
    """The folder's own, also by way of a run that began with it; a job that names its network keeps that."""
    sizes = {
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 2048,
        "vocab_size": 266_240,
        "sliding_window": 512,
    }
    bucket.put("models/zulu/config.json", json.dumps({"model_type": "gemma3_text", **sizes}).encode())
    record = {"job": schema.to_dict(job(model={"checkpoint": "models/zulu"}))}
    bucket.put("runs/first/run.json", json.dumps(record).encode())
    named = job(model={"name": "Gemma-3-270m"})
    expected_shape = model_shape.shape_of(named.train, vocab_size=266_240)

    for began in ("models/zulu", "runs/first"):
        found = model_shape.with_network_sizes(job(model={"checkpoint": began}), bucket)
        assert model_shape.shape_of(found.train) == expected_shape, began
    for same in (named, job(model={"checkpoint": "models/none"}), job()):
        assert model_shape.with_network_sizes(same, bucket) is same


@pytest.mark.parametrize(("gpu", "model"), [("L40", "pythia-14m"), ("MI300X", "Gemma-2-2b")])
def test_an_unknown_model_or_gpu_has_no_speed(gpu, model):
    unknown = job(model={"name": model})

    assert expected(unknown, gpu, 1) is None
    given = expected(unknown, gpu, 1, tokens_per_s=100.0)
    assert given is not None and given.mfu is None


def test_measured_comes_before_scaled_and_scaled_before_projected():
    on_four = MeasuredThroughput(run="a", gpu="L40", gpus=4, tokens_per_s=12_000.0, mfu=0.27)
    on_eight = MeasuredThroughput(run="b", gpu="L40", gpus=8, tokens_per_s=20_000.0, mfu=0.22)
    other = MeasuredThroughput(run="c", gpu="L40S", gpus=4, tokens_per_s=1.0, mfu=0.01)

    def of(*earlier: MeasuredThroughput) -> tuple[str, float]:
        speed = expected(job(), "l40", 4, earlier=earlier)
        assert speed is not None
        return speed.description, speed.tokens_per_s

    assert of(other, on_eight, on_four) == ("measured: a", 12_000.0)
    assert of(other, on_eight) == ("scaled from b on L40:8", 10_000.0)
    assert of(other)[0].startswith("projected: MFU")


def test_a_longer_vocabulary_costs_more():
    plain, longer = expected(job(), "L40", 4), expected(job(), "L40", 4, vocab_size=296_000)

    assert plain is not None and longer is not None
    assert longer.tokens_per_s < plain.tokens_per_s


@pytest.fixture
def trained(bucket: Bucket, tmp_path: Path) -> SyntheticRun:
    """Twenty steps of a run in the bucket, without a record."""
    run = SyntheticRun(RunStore(bucket), tmp_path)
    run.begin()
    run.start(0)
    run.train(1, 20)
    run.end("succeeded")
    return run


def recorded(train: dict[str, Any] | None = None) -> dict[str, Any]:
    return schema.to_dict(job(**(train or {})))


def test_an_earlier_run_of_this_model_on_this_gpu_is_found_in_the_bucket(trained, bucket):
    trained.save(gpus="L40:4", job=recorded())
    found = throughput.measured(RunStore(bucket), job(), "L40")

    assert [(each.run, each.gpu, each.gpus) for each in found] == [(NAME, "L40", 4)]
    assert found[0].tokens_per_s == pytest.approx(2048, rel=0.05)
    assert found[0].mfu == pytest.approx(0.31, rel=0.05)


def test_without_a_gpu_from_the_launch_the_drivers_name_is_used(trained, bucket):
    trained.save(machines=[{"gpu": "NVIDIA L40", "gpus": 4, "nodes": 2}], job=recorded())

    assert [each.gpus for each in throughput.measured(RunStore(bucket), job(), "L40")] == [8]
    assert throughput.measured(RunStore(bucket), job(), "L40S") == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"name": "Gemma-2-9b"}},
        {"model": {"overrides": {"n_layer": 4}}},
        {"model": {"checkpoint": "models/gemma-3"}},
        {"data": {"sequence_length": 1024}},
        {"precision": "32-true"},
        {"float8": "tensorwise"},
        {"activation_checkpointing": "none"},
        {"adapter": {}},
    ],
)
def test_a_run_of_another_job_is_not_comparable(trained, bucket, other):
    trained.save(gpus="L40:4", job=recorded(other))

    assert throughput.measured(RunStore(bucket), job(), "L40") == []


def test_a_run_without_a_gpu_or_without_steps_is_not_used(bucket, tmp_path):
    run = SyntheticRun(RunStore(bucket), tmp_path)
    run.save(job=recorded())
    assert throughput.measured(RunStore(bucket), job(), "L40") == []
    run.save(gpus="L40:4", job=recorded())
    assert throughput.measured(RunStore(bucket), job(), "L40") == []
