"""Fine-tuning: it learns, checkpoints hold the adapter only, and a kill changes no bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bafogpt.core.errors import ConfigError
from bafogpt.data import instructions, prompts, tokenizer
from bafogpt.data.instructions import InstructionOptions
from bafogpt.jobs import job as jobs
from bafogpt.model import lora
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import GPT
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.train.config import TrainConfig
from bafogpt.train.estimates import memory

from .conftest import ROOT, Trained, assert_bit_equal, tensors, tiny

Train = Callable[..., Trained]
BYTES = tokenizer.load("bytes")
ADAPTER: dict[str, Any] = {"base": "nf4", "r": 8, "alpha": 16, "dropout": 0.1, "neftune": 1.0}


@pytest.fixture(scope="session")
def packed(starter: Bucket) -> str:
    """The starter's instructions, at ``data/instructions`` of the session's bucket."""
    instructions.prepare(
        ["starter"],
        style=prompts.load("plain", BYTES),
        tokenizer=BYTES,
        out=starter.child("data/instructions"),
        options=InstructionOptions(context=128, validation=0.1),
    )
    return "data/instructions"


def tuned(path: str, steps: int = 12, **over: Any) -> TrainConfig:
    """A fine-tuning of the tiny model."""
    return tiny(
        **{
            "tokens": steps * 1024,
            "data": {"path": path, "sequence_length": 128},
            "batch": {"tokens": 1024, "micro_batch_size": 4},
            "adapter": ADAPTER,
            **over,
        }
    )


def test_a_killed_and_resumed_run_has_the_same_bits_and_saves_only_the_adapter(train: Train, packed: str) -> None:
    whole = train(tuned(packed))
    assert whole.results[0].outcome == "finished", whole.output
    resumed = train(tuned(packed), resume=whole.staged[0].folder)
    left = tensors(whole.staged[-1])
    assert_bit_equal(left, tensors(resumed.staged[-1]))
    names = {name.partition(".")[2] for name in left if name.startswith("model.")}
    assert len(names) == 2 * 4 * 2
    assert all(".lora." in name for name in names)
    size = sum(path.stat().st_size for path in whole.staged[-1].folder.iterdir())
    assert size < 200_000, "no part of the base is in it"


def test_a_checkpoint_of_another_base_or_adapter_is_refused(train: Train, packed: str) -> None:
    made = train(tuned(packed, steps=1)).staged[-1].folder
    for other, says in (
        (tuned(packed, steps=2, seed=2), "base is"),
        (tuned(packed, steps=2, adapter={**ADAPTER, "r": 4}), "adapter.r is 8 there and 4 here"),
        (tuned(packed, steps=2, adapter=None), "adapter"),
    ):
        (result,) = train(other, resume=made).results
        assert result.outcome == "failed"
        assert says in result.error
        assert result.hint


def test_a_run_as_base_is_unchanged_and_the_adapter_is_exported(
    train: Train, starter: Bucket, packed: str, tmp_path: Path
) -> None:
    base = train(tiny(tokens=256)).staged[-1]
    store = CheckpointStore(starter.child("runs/base-of-finetune/checkpoints"))
    store.upload(base.folder, step=base.step, samples=base.samples, upload_id="a", metadata=base.metadata)
    over = {"name": "Gemma-2-2b", "checkpoint": "runs/base-of-finetune"}
    config = tuned(packed, steps=2, model=over, adapter={**ADAPTER, "base": "as-is"})
    found = train(config)
    assert found.results[0].outcome == "finished", found.output
    content, adapter, gpt, digest = lora.from_checkpoint(found.staged[-1].folder)
    assert adapter == config.adapter
    assert digest != train(tuned(packed, steps=1)).staged[-1].metadata["fingerprint"]["base"]
    lora.save(tmp_path / "out", content, adapter, gpt, base="runs/base-of-finetune", base_digest=digest)

    from bafogpt.model.gpt import new_gpt
    from bafogpt.train.state import load_weights

    model = new_gpt(gpt, tie_embeddings=True, seed=5)
    load_weights(model, base.folder, base.metadata["fingerprint"]["model"])
    loaded = lora.load(tmp_path / "out", model, gpt)
    assert dataclasses.replace(adapter, base=loaded.base, neftune=0.0) == loaded, "the two are of training alone"
    for name, tensor in lora.tensors(model).items():
        assert torch.equal(tensor, content[name])
    with pytest.raises(ConfigError, match="of a whole model"):
        lora.from_checkpoint(base.folder)


def test_8_bit_moments_are_restored_exactly_and_refused_by_another_optimizer(train: Train, packed: str) -> None:
    config = tuned(packed, adapter={**ADAPTER, "r": 64}, optimizer={"name": "adamw8bit-paged"})
    whole = train(config)
    assert whole.results[0].outcome == "finished", whole.output
    resumed = train(config, resume=whole.staged[0].folder)
    left = tensors(whole.staged[-1])
    assert_bit_equal(left, tensors(resumed.staged[-1]))
    kinds = {name.split(".")[1]: tensor.dtype for name, tensor in left.items() if "query.A" in name}
    assert kinds["state1"] == kinds["state2"] == torch.uint8 and kinds["absmax1"] == torch.float32
    (result,) = train(tuned(packed, adapter={**ADAPTER, "r": 64}), resume=whole.staged[0].folder).results
    assert result.outcome == "failed" and "optimizer is 'adamw8bit-paged' there and 'adamw' here" in result.error


def test_8_bit_moments_train_about_as_well_as_32_bit_ones(train: Train, packed: str) -> None:
    over = {"adapter": {**ADAPTER, "r": 64, "dropout": 0.0, "neftune": 0.0}}
    plain, small = (train(tuned(packed, optimizer={"name": name}, **over)) for name in ("adamw", "adamw8bit-paged"))
    assert small.losses == pytest.approx(plain.losses, rel=2e-2)
    assert small.losses[12] != plain.losses[12]
    assert small.losses[12] < small.losses[1]


def test_two_processes_train_the_same_adapter_as_one(train: Train, packed: str) -> None:
    quiet = {**ADAPTER, "dropout": 0.0, "neftune": 0.0}  # what is drawn depends on the process
    one, two = (train(tuned(packed, adapter=quiet), processes=processes) for processes in (1, 2))
    assert [result.outcome for result in two.results] == ["finished", "finished"], two.output
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    folder = two.staged[-1].folder
    assert len(sorted(folder.glob("*.safetensors"))) == 2, "a part of the adapter a process"
    content, *_, digest = lora.from_checkpoint(folder)
    alone, *_, same = lora.from_checkpoint(one.staged[-1].folder)
    assert digest == same
    for name, tensor in alone.items():
        torch.testing.assert_close(content[name], tensor, atol=1e-5, rtol=1e-3)
    resumed = train(tuned(packed, adapter=quiet), resume=two.staged[0].folder)  # 2 → 1
    step = two.staged[0].step
    assert resumed.losses == pytest.approx({s: loss for s, loss in one.losses.items() if s > step}, rel=1e-5)


def test_recomputation_changes_no_loss_of_an_adapter_with_dropout(train: Train, packed: str) -> None:
    kept, again = (train(tuned(packed, steps=6, activation_checkpointing=how)) for how in ("none", "selective"))
    assert again.results[0].outcome == "finished", again.output
    assert again.losses == kept.losses


@pytest.mark.slow
def test_two_hundred_steps_on_the_shipped_instructions_lower_the_held_out_loss(train: Train, packed: str) -> None:
    """Every matrix has a pair, because this base has learned nothing that attention alone could use."""
    everything = ["query", "key", "value", "projection", "mlp", "head", "embedding"]
    config = tuned(
        packed,
        steps=200,
        optimizer={"learning_rate": 5e-3},
        adapter={**ADAPTER, "targets": everything, "r": 16, "dropout": 0.0},
        validation={"every": 20, "samples": 16},
        checkpoint={"every": 200, "max_pending": 99},
    )
    found = train(config)
    assert found.results[0].outcome == "finished", found.output
    losses = [line["validation_loss"] for line in found.lines if "validation_loss" in line]
    assert losses[-1] < 0.9 * losses[0], losses


def test_fine_tuning_gemma_2_2b_is_estimated_to_fit_24_gb() -> None:
    job = jobs.load(ROOT / "jobs" / "finetune.yaml", [])
    shape = gpt_config("Gemma-2-2b", {}, 256_000)
    with torch.device("meta"):
        model = GPT(shape)
        lora.add(model, shape, AdapterConfig(), seed=0)
    pairs = sum(each.numel() for each in model.parameters() if each.requires_grad)
    need = memory.estimate(shape, job.train, micro_batch=1, processes=1, gpu=True, sharding="step")
    blocks = 26 * (2304 * 4096 + 2048 * 2304 + 3 * 2304 * 9216)
    assert need.state == int(blocks * 0.516) + 256_000 * 2304 * 2 + 16 * pairs
    assert need.total < 20e9
