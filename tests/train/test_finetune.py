"""Fine-tuning on the one trainer: it learns, its checkpoints are the adapter, and a kill changes no bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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
from bafogpt.train.trainer_io import StagedCheckpoint

from .conftest import ROOT, Trained, tiny

Train = Callable[..., Trained]
BYTES = tokenizer.load("bytes")
SHARED = ROOT.parent / "shared" / "data" / "zulu" / "instructions" / "instructions.jsonl.gz"
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


def tensors(checkpoint: StagedCheckpoint) -> dict[str, torch.Tensor]:
    (file,) = checkpoint.folder.glob("*.safetensors")
    return load_file(file)


def test_a_killed_and_resumed_run_has_the_bits_of_one_left_in_peace_and_saves_the_adapter_alone(
    train: Train, packed: str
) -> None:
    whole = train(tuned(packed))
    assert whole.results[0].outcome == "finished", whole.output
    resumed = train(tuned(packed), resume=whole.staged[0].folder)
    left, killed = tensors(whole.staged[-1]), tensors(resumed.staged[-1])
    assert left.keys() == killed.keys()
    assert [name for name in left if not torch.equal(left[name], killed[name])] == []
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


def test_an_unknown_target_module_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"no target module 'querry' .did you mean 'query'"):
        tuned("data/x", adapter={**ADAPTER, "targets": ["querry"]})


def test_the_base_is_a_run_and_stays_what_it_was_and_the_adapter_is_exported(
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


def test_moments_in_8_bits_come_back_exactly_and_are_no_other_optimizers(train: Train, packed: str) -> None:
    config = tuned(packed, adapter={**ADAPTER, "r": 64}, optimizer={"name": "adamw8bit-paged"})
    whole = train(config)
    assert whole.results[0].outcome == "finished", whole.output
    resumed = train(config, resume=whole.staged[0].folder)
    left, killed = tensors(whole.staged[-1]), tensors(resumed.staged[-1])
    assert left.keys() == killed.keys()
    assert [name for name in left if not torch.equal(left[name], killed[name])] == []
    kinds = {name.split(".")[1]: tensor.dtype for name, tensor in left.items() if "query.A" in name}
    assert kinds["state1"] == kinds["state2"] == torch.uint8 and kinds["absmax1"] == torch.float32
    (result,) = train(tuned(packed, adapter={**ADAPTER, "r": 64}), resume=whole.staged[0].folder).results
    assert result.outcome == "failed" and "optimizer is 'adamw8bit-paged' there and None here" in result.error


def test_8_bit_moments_train_about_what_those_in_32_bits_do(train: Train, packed: str) -> None:
    over = {"adapter": {**ADAPTER, "r": 64, "dropout": 0.0, "neftune": 0.0}}
    plain, small = (train(tuned(packed, optimizer={"name": name}, **over)) for name in ("adamw", "adamw8bit-paged"))
    assert small.losses == pytest.approx(plain.losses, rel=2e-2)
    assert small.losses[12] != plain.losses[12]
    assert small.losses[12] < small.losses[1]


def test_8_bit_moments_on_two_processes_are_refused_before_anything_starts(train: Train, packed: str) -> None:
    result = train(tuned(packed, steps=1, optimizer={"name": "adamw8bit-paged"}), processes=2).results[0]
    assert (result.outcome, result.retry) == ("failed", False)
    assert "adamw8bit-paged is for one process, here are 2" in result.error
    assert result.hint


def test_two_processes_train_the_adapter_that_one_does(train: Train, packed: str) -> None:
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


def test_two_processes_in_bf16_mixed_are_refused_before_anything_starts(train: Train, packed: str) -> None:
    result = train(tuned(packed, steps=1, precision="bf16-mixed"), processes=2).results[0]
    assert (result.outcome, result.retry) == ("failed", False)
    assert "2 processes do not train an adapter in bf16-mixed" in result.error
    assert "bf16-true" in result.hint


def test_recomputation_changes_no_loss_of_an_adapter_with_dropout(train: Train, packed: str) -> None:
    kept, again = (train(tuned(packed, steps=6, activation_checkpointing=how)) for how in ("none", "selective"))
    assert again.results[0].outcome == "finished", again.output
    assert again.losses == kept.losses


@pytest.mark.slow
def test_two_hundred_steps_on_the_shipped_instructions_lower_the_held_out_loss(train: Train, packed: str) -> None:
    held_out = losses(train(longer(packed)))
    assert held_out[-1] < 0.9 * held_out[0]


@pytest.mark.slow
def test_two_hundred_steps_on_the_shared_instructions_lower_the_held_out_loss(train: Train, starter: Bucket) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not on this machine")
    instructions.prepare(
        [str(SHARED)],
        style=prompts.load("alpaca", BYTES),
        tokenizer=BYTES,
        out=starter.child("data/shared-instructions"),
        options=InstructionOptions(context=512, too_long="drop"),
    )
    path = "data/shared-instructions"
    config = longer(path, data={"path": path, "sequence_length": 512}, batch={"tokens": 1024, "micro_batch_size": 2})
    held_out = losses(train(config))
    assert held_out[-1] < 0.9 * held_out[0]


def longer(path: str, **over: Any) -> TrainConfig:
    """200 steps; every matrix has a pair, because this base has learned nothing that attention alone could use."""
    everything = ["query", "key", "value", "projection", "mlp", "head", "embedding"]
    return tuned(
        path,
        steps=200,
        optimizer={"learning_rate": 5e-3},
        adapter={**ADAPTER, "targets": everything, "r": 16, "dropout": 0.0},
        validation={"every": 20, "samples": 16},
        checkpoint={"every": 200, "max_pending": 99},
        **over,
    )


def losses(found: Trained) -> list[float]:
    assert found.results[0].outcome == "finished", found.output
    losses = [line["validation_loss"] for line in found.lines if "validation_loss" in line]
    print(*losses)  # shown where the test fails
    return losses


def test_what_is_expected_of_memory_lets_gemma_2_2b_onto_a_gpu_of_24_gb() -> None:
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
