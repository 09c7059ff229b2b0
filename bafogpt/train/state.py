"""The TrainState: everything that a resume restores exactly.

torch's distributed checkpoint writes tensors into plain safetensors files, one a process with its slice, which any
number of processes can read; nothing is unpickled. Progress and fingerprint are JSON beside them. Frozen parameters are
not saved, and random numbers are seeded by the step, so there is no generator state.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from bafogpt.core.errors import ConfigError, CorruptError
from bafogpt.train import optimizer
from bafogpt.train.parallel import world_size
from bafogpt.train.trainer_io import read_staged

# DCP warns that with one process it works without a process group
warnings.filterwarnings("ignore", message=".*assuming the intent is to.*")

MODEL, OPTIMIZER = "model.", "optimizer."


@dataclass
class TrainProgress:
    """The progress of a run. Its position in the data is ``samples``."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples consumed, and the index of the next one."""
    seconds: float = 0.0
    """Time spent training, over all attempts."""
    targets: int = 0
    """Tokens learned from."""
    loss_mean: float = 0.0
    """Running mean of the logged losses, to detect spikes."""
    losses: int = 0
    """Number of logged losses."""
    validation_loss: float | None = None
    """Of this step; None if it was not validated."""

    def advance(self, samples: int, targets: int) -> None:
        """Count a step."""
        self.step += 1
        self.samples += samples
        self.targets += targets
        self.validation_loss = None


@dataclass
class TrainState:
    """A model, its optimizer and their progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    fingerprint: dict[str, Any]
    """What a checkpoint must agree with: ``model``, ``optimizer``, ``data``, ``sequence_length``, ``bos``, and for
    fine-tuning ``adapter`` and ``base``."""
    progress: TrainProgress = field(default_factory=TrainProgress)

    def load(self, folder: Path) -> None:
        """Restore from a checkpoint folder saved by any number of processes.

        Raises :class:`ConfigError` for another model's or dataset's checkpoint, and :class:`CorruptError` for an
        incomplete one.
        """
        meta = read_staged(folder).metadata
        saved = meta.get("fingerprint", {})
        for part in sorted({*saved, *self.fingerprint}):
            _refuse_difference(saved.get(part), self.fingerprint.get(part), folder, part)
        optimizer.init_state(self.optimizer)
        _load_tensors(self.tensors(), folder)
        known = {each.name for each in fields(TrainProgress)} - {"validation_loss"}
        self.progress = TrainProgress(**{name: meta[name] for name in known if name in meta})
        optimizer.set_steps(self.optimizer, self.progress.step)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name → tensor of everything that is saved; tied weights once."""
        tensors = {}
        for name, parameter in _named(self.model):
            tensors[MODEL + name] = parameter.detach()
            if self.progress.step or self.optimizer.state:  # there is none before the first step
                state = optimizer.saved_state(self.optimizer, parameter)
                tensors |= {f"{OPTIMIZER}{key}.{name}": tensor for key, tensor in state.items()}
        return tensors


def load_weights(model: nn.Module, folder: Path, fingerprint: dict[str, Any]) -> None:
    """Load the weights of a checkpoint folder into ``model``, which has that ``fingerprint``.

    Raises :class:`ConfigError` for another model's weights, and :class:`CorruptError` for an incomplete folder.
    """
    saved = read_staged(folder).metadata.get("fingerprint", {})
    _refuse_difference(saved.get("model", {}), fingerprint, folder)
    _load_tensors({MODEL + name: value.detach() for name, value in _named(model)}, folder)


def _refuse_difference(saved: Any, own: Any, folder: Path, part: str = "model") -> None:
    """Raise :class:`ConfigError` naming the first field in which a checkpoint differs."""
    if isinstance(saved, dict) and isinstance(own, dict):
        keys = sorted(key for key in {*saved, *own} if saved.get(key) != own.get(key))
        if not keys:
            return
        difference = f"{part}.{keys[0]} is {saved.get(keys[0])!r} there and {own.get(keys[0])!r} here"
    elif saved == own:
        return
    else:
        difference = f"{part} is {saved!r} there and {own!r} here"
    hint = "launch under another --name, or give the configuration it was made with"
    if difference.startswith(("model.vocab_size", "model.padded_vocab_size")):
        hint = "prepare the data with the checkpoint's tokenizer, or give the model rows: bafogpt model expand --help"
    raise ConfigError(f"checkpoint {folder.name} belongs to another run: {difference}", hint)


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trained parameters by their names without wrappers; tied ones once."""
    named = ((name.replace("_checkpoint_wrapped_module.", ""), value) for name, value in model.named_parameters())
    return [(name, value) for name, value in named if value.requires_grad]


def _load_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    except (dcp.api.CheckpointException, RuntimeError, KeyError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CorruptError(f"{folder} cannot be loaded: {first}", "bafogpt runs show RUN") from error
