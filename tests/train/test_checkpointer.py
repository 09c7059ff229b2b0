"""Checkpoints are written while training continues."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bafogpt.core.errors import DiskFullError
from bafogpt.train import trainer_io
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.state import TrainProgress, TrainState
from bafogpt.train.trainer_io import TrainerFiles


def make_state(seed: int) -> TrainState:
    """A small state with optimizer state, as after a step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    fingerprint = {"model": {"size": 64}, "data": "d", "sequence_length": 8}
    return TrainState(model, optimizer, fingerprint, TrainProgress(step=7, samples=28, seconds=1.5))


@pytest.fixture
def trainer_files(tmp_path: Path) -> TrainerFiles:
    made = TrainerFiles(tmp_path)
    made.checkpoints.mkdir()
    return made


def test_the_state_at_the_step_is_saved_and_restored_exactly(trainer_files: TrainerFiles):
    state = make_state(1)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    checkpointer = Checkpointer(trainer_files, CheckpointConfig())
    checkpointer.save(state)
    with torch.no_grad():  # training goes on while the thread writes
        for tensor in state.tensors().values():
            tensor.add_(1.0)
    checkpointer.wait()
    other = make_state(2)
    other.load(trainer_files.pending()[0])
    assert other.progress == TrainProgress(step=7, samples=28, seconds=1.5)
    assert other.tensors().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.tensors().items())


def test_a_checkpoint_appears_after_its_files_are_synced(trainer_files: TrainerFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_io, "_sync_files", lambda folder: seen.append(trainer_files.pending()))
    seen: list[list[Path]] = []
    checkpointer = Checkpointer(trainer_files, CheckpointConfig())
    checkpointer.save(make_state(1))
    checkpointer.wait()
    assert seen == [[]]
    assert [path.name for path in trainer_files.pending()] == ["step-00000007"]


def test_an_error_of_the_thread_is_raised_and_no_partial_checkpoint_is_left(
    trainer_files: TrainerFiles, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer_io, "_sync_files", full)
    checkpointer = Checkpointer(trainer_files, CheckpointConfig())
    checkpointer.save(make_state(1))
    with pytest.raises(DiskFullError, match="no room for checkpoint step-00000007"):
        checkpointer.wait()
    assert list(trainer_files.checkpoints.iterdir()) == []
