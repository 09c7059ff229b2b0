"""The model in a training checkpoint: its configuration and weights, as in a model folder.

A checkpoint folder has ``checkpoint.json`` and one safetensors file per process with its rows of every tensor: the
model's under ``model.``, the optimizer's under ``optimizer.`` (not read here).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.config import Config

from bafogpt.core.errors import CorruptError
from bafogpt.model.formats import param_names, safetensors_io
from bafogpt.model.formats.families import family_of, name_of, require_family
from bafogpt.model.formats.lazy_tensor import LazyTensor

META = "checkpoint.json"
PREFIX = "model."


@dataclass(frozen=True)
class CheckpointFolder:
    """The model in a local checkpoint."""

    path: Path
    step: int
    config: Config
    tied: bool
    """Whether the output head is the embedding matrix."""
    weights: Mapping[str, LazyTensor]
    """By Hugging Face's names in the network's order; without a tied head."""

    @classmethod
    def open(cls, path: Path) -> CheckpointFolder:
        """Read the headers, and check names and shapes against the saved configuration.

        Raises :class:`CorruptError` for an incomplete checkpoint, :class:`~bafogpt.core.errors.ConfigError` for an
        unsupported family."""
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            saved, step = dict(meta["fingerprint"]["model"]), int(meta["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{path} is not a checkpoint: {error}", f"ls {path}") from None
        tied = bool(saved.get("tie_embeddings", True))
        config = config_of(saved, str(path))
        require_family(config)
        found = safetensors_io.read_slices(sorted(path.glob("*.safetensors")))
        ours = {name.removeprefix(PREFIX): weight for name, weight in found.items() if name.startswith(PREFIX)}
        if tied and param_names.EMBEDDING not in ours and param_names.HEAD in ours:
            ours[param_names.EMBEDDING] = ours.pop(param_names.HEAD)  # one tensor, saved under either name
        renamed = param_names.to_hf([weight.renamed(name) for name, weight in ours.items()], config)
        theirs = {weight.name: weight for weight in renamed}
        expected = param_names.shapes(config, tied=tied)
        wrong = [name for name, shape in expected.items() if name not in theirs or theirs[name].shape != shape]
        if wrong or len(theirs) != len(expected):
            what = wrong[0] if wrong else sorted({*theirs} - {*expected})[0]
            raise CorruptError(f"{path}: {what} does not fit its configuration", "bafogpt storage verify runs/RUN")
        return cls(path, step, config, tied, {name: theirs[name] for name in expected})


def config_of(saved: Mapping[str, Any], where: str) -> Config:
    """litgpt's configuration from a checkpoint's fingerprint, named if its family is known.

    Raises :class:`CorruptError`; ``where`` names the checkpoint.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    try:
        config = Config(**{key: value for key, value in saved.items() if key in known})
    except (AssertionError, TypeError, ValueError) as error:
        raise CorruptError(f"{where}: its configuration does not make a model: {error}", f"see {META}") from None
    if family_of(config) is not None:
        config.name = name_of(config)
    return config
