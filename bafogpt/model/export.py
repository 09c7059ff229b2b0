"""Exports a training checkpoint or a model folder in Hugging Face's or litgpt's layout.

Hugging Face's layout is a model folder again. litgpt's is ``lit_model.pth`` (pickled: litgpt has no other format) and
``model_config.yaml``, with the published model's norm epsilon.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from litgpt.config import Config

from bafogpt.core import files, terms
from bafogpt.core.errors import ConfigError, NotFoundError
from bafogpt.data.tokenizer import JsonTokenizer
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats import hf_config, param_names
from bafogpt.model.formats.checkpoint import META, CheckpointFolder
from bafogpt.model.formats.folder import DTYPES, ModelFolder
from bafogpt.model.formats.lazy_tensor import LazyTensor
from bafogpt.model.formats.safetensors_io import SHARD_BYTES, Advance

Format = Literal["hf", "litgpt"]
FORMATS: tuple[Format, ...] = ("hf", "litgpt")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model to write."""

    config: Config
    tied: bool
    weights: Mapping[str, LazyTensor]
    """By Hugging Face's names."""
    content: Mapping[str, Any]
    """Its ``config.json``."""
    companions: tuple[Path, ...] = ()
    """Tokenizer and licence files, to be copied along."""
    changes: tuple[str, ...] | None = ()
    """Changes since the base, as for :func:`folder.write`."""

    def as_dtype(self, name: str | None) -> Export:
        """The same with all tensors converted to the dtype ``name``, if any. Raises :class:`ConfigError`."""
        if name is None:
            return self
        if name not in DTYPES:
            raise ConfigError(f"dtype '{name}' is not known", f"one of {', '.join(DTYPES)}")
        weights = {key: weight.to(DTYPES[name]) for key, weight in self.weights.items()}
        content = {key: value for key, value in self.content.items() if key != "dtype"}
        changes = None if self.changes is None else (*self.changes, f"weights: converted to {name}")
        return replace(self, weights=weights, content={**content, "torch_dtype": name}, changes=changes)

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights.values())


def from_folder(folder: ModelFolder) -> Export:
    """A model folder, unchanged."""
    companions = tuple(folder.companions())
    return Export(
        config=folder.config, tied=folder.tied, weights=folder.weights, content=folder.content, companions=companions
    )


def from_checkpoint(
    checkpoint: CheckpointFolder,
    companions: Iterable[Path] = (),
    changes: tuple[str, ...] | None = ("weights: trained",),
) -> Export:
    """A checkpoint's model."""
    companions = tuple(companions)
    dtype = folders.dtype_name(checkpoint.weights[param_names.HF_EMBEDDING].dtype)
    content = hf_config.from_litgpt(
        checkpoint.config, tie_embeddings=checkpoint.tied, dtype=dtype, special=_special(companions)
    )
    config, tied, weights = checkpoint.config, checkpoint.tied, checkpoint.weights
    return Export(config=config, tied=tied, weights=weights, content=content, companions=companions, changes=changes)


def open_folder(path: Path) -> Export:
    """A local checkpoint or model folder. Raises :class:`NotFoundError`."""
    if (path / META).is_file():
        return from_checkpoint(CheckpointFolder.open(path), folders.companions(path))
    if (path / hf_config.CONFIG).is_file():
        return from_folder(ModelFolder.open(path))
    raise NotFoundError(f"{path} has no {hf_config.CONFIG} and no {META}", f"ls {path}")


def write(
    export: Export, out: Path, form: Format, *, shard_bytes: int = SHARD_BYTES, progress: Advance = lambda _: None
) -> None:
    """Write a model to the new folder ``out``, atomically.

    Raises :class:`~bafogpt.core.errors.ConflictError` where ``out`` exists.
    """
    if form == "hf":
        folders.write(
            out,
            export.content,
            export.weights.values(),
            companions=export.companions,
            changes=export.changes,
            shard_bytes=shard_bytes,
            progress=progress,
        )
    else:
        _write_litgpt(export, out, progress)


def _special(companions: tuple[Path, ...]) -> dict[str, int | None]:
    """The tokenizer's begin and end ids for ``config.json``."""
    file = next((path for path in companions if path.name == "tokenizer.json"), None)
    if file is None:
        return {}
    read = JsonTokenizer(file)
    return {"bos_token_id": read.bos_id, "eos_token_id": read.eos_id}


def _write_litgpt(export: Export, out: Path, progress: Advance) -> None:
    from litgpt.utils import incremental_save, save_config

    weights = param_names.to_litgpt(export.weights, export.config)
    with files.new_folder(out) as partial:
        files.require_space(partial, export.bytes, "the model")
        with incremental_save(partial / "lit_model.pth") as saver:
            state = dict(_stored(saver, weights.values(), progress))
            if export.tied:
                state[param_names.HEAD] = state[param_names.EMBEDDING]
            saver.save(state)
        save_config(export.config, partial)
        folders.copy_files(export.companions, partial)
        if export.changes is not None:
            changes = (*export.changes, "weights: converted to litgpt's format")
            terms.add_notice(partial, str(export.content.get("model_type")), changes)
        files.write_atomic(partial / hf_config.CONFIG, json.dumps(dict(export.content), indent=2) + "\n")
        files.sync_file(partial / "lit_model.pth")


def _stored(saver: Any, weights: Iterable[LazyTensor], progress: Advance) -> Iterator[tuple[str, torch.Tensor]]:
    """Write the tensors one at a time; yield each name with its entry in the file's index."""
    for weight in weights:
        yield weight.name, saver.store_early(weight.tensor())
        progress(weight.bytes)
