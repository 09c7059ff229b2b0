"""Model folders in Hugging Face's layout: opened and checked, loaded into a network, written.

::

    config.json                      sizes; vocab_size is the padded size, tie_word_embeddings as trained
    model.safetensors                or model-00001-of-0000N.safetensors and model.safetensors.index.json
    tokenizer.json  tokenizer_config.json  …

Opening reads only headers. Tensors are read by rows on demand: each of several processes reads its own rows, and a
model larger than memory can be converted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bafogpt.core import digest, files, terms
from bafogpt.core.errors import ConfigError
from bafogpt.model.formats import hf_config, param_names, safetensors_io
from bafogpt.model.formats.lazy_tensor import LazyTensor
from bafogpt.model.formats.safetensors_io import SHARD_BYTES, Advance

COMPANION_FILES = (
    "generation_config.json",
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.lineage.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
"""Other files of a model folder: tokenizer and generation settings."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelFolder:
    """A local model folder whose tensors fit its ``config.json``."""

    path: Path
    content: Mapping[str, Any]
    """``config.json``."""
    config: Config
    """litgpt's configuration."""
    tied: bool
    """Whether the output head is the embedding matrix."""
    weights: Mapping[str, LazyTensor]
    """By Hugging Face's names in the network's order; without a tied head."""

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the headers, and check names and shapes.

        Raises :class:`~bafogpt.core.errors.NotFoundError`, :class:`ConfigError` for an unsupported family or tensors
        that do not fit ``config.json``, and :class:`~bafogpt.core.errors.CorruptError` for torn files.
        """
        content = hf_config.read(path)
        config = hf_config.to_litgpt(content, str(path / hf_config.CONFIG))
        tied = hf_config.tied(content, str(path / hf_config.CONFIG))
        found = safetensors_io.read_folder(path)
        expected = param_names.shapes(config, tied=tied)
        for name, shape in expected.items():
            if name not in found:
                raise ConfigError(f"{path} has no {name}", f"ls {path}; pull the model again")
            if found[name].shape != shape:
                raise ConfigError(
                    f"{path}: {name} is {_shown(found[name].shape)}, config.json makes it {_shown(shape)}",
                    f"take {hf_config.CONFIG} and tensors from the same model",
                )
        unknown = sorted(name for name in found if name not in expected and not (tied and name == param_names.HF_HEAD))
        if unknown:
            title = hf_config.family_in(content, str(path)).title
            raise ConfigError(f"{path} has {unknown[0]}, which {title} has not", "pull another model")
        for name, weight in found.items():
            if not weight.dtype.is_floating_point:
                raise ConfigError(f"{path}: {name} has whole numbers ({weight.dtype})", "convert the model to BF16")
        if tied and param_names.HF_HEAD in found:
            _require_same(found[param_names.HF_HEAD], found[param_names.HF_EMBEDDING], path)
        return cls(path, content, config, tied, {name: found[name] for name in expected})

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's."""
        return self.weights[param_names.HF_EMBEDDING].dtype

    @property
    def parameters(self) -> int:
        return sum(weight.bytes // weight.dtype.itemsize for weight in self.weights.values())

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights.values())

    def companions(self) -> list[Path]:
        """The tokenizer and licence files."""
        return companions(self.path)

    def require_tokenizer(self, wanted: str) -> None:
        """Raise :class:`ConfigError` where the folder's ``tokenizer.json`` has another digest than ``wanted``."""
        own = self.path / "tokenizer.json"
        if own.is_file() and digest.of_file(own) != wanted:
            raise ConfigError(
                f"the data was made with another tokenizer than {own}",
                "bafogpt data prepare … --tokenizer with the model's own, or bafogpt model expand",
            )

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a network with litgpt's names, converted to each parameter's dtype.

        The network may be sharded by FSDP2 (each process reads its own rows). An untied network gets a tied model's
        embedding as its head. Raises :class:`ConfigError` where shapes differ, or a tied network has no place for a
        head.
        """
        weights = param_names.to_litgpt(self.weights, self.config)
        parameters = _parameters(model)
        if self.tied:
            weights[param_names.HEAD] = weights[param_names.EMBEDDING].renamed(param_names.HEAD)
        elif param_names.HEAD not in parameters:
            raise ConfigError(
                f"{self.path} has an output head of its own, the network's is its embedding",
                "--set train.model.tie_embeddings=false",
            )
        self._require_fit(weights, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                _copy(weights[name], parameter)

    def _require_fit(self, weights: Mapping[str, LazyTensor], parameters: Mapping[str, nn.Parameter]) -> None:
        tied = param_names.HEAD not in parameters
        missing = sorted({*weights} - {*parameters} - ({param_names.HEAD} if tied else set()))
        extra = sorted({*parameters} - {*weights})
        if missing or extra:
            where = f"{missing[0]} is in the folder alone" if missing else f"{extra[0]} is in the network alone"
            raise ConfigError(f"{self.path} is another model than the network: {where}", "check train.model")
        for name, parameter in parameters.items():
            ours, theirs = tuple(parameter.shape), weights[name].shape
            if ours != theirs and name in (param_names.EMBEDDING, param_names.HEAD) and ours[1:] == theirs[1:]:
                raise ConfigError(
                    f"{self.path} has {theirs[0]:,} rows in its vocabulary, the network {ours[0]:,}",
                    "prepare the data with the model's own tokenizer, or expand the model: bafogpt model expand",
                )
            if ours != theirs:
                raise ConfigError(
                    f"{self.path}: {name} is {_shown(theirs)}, the network's is {_shown(ours)}", "check train.model"
                )


def _require_same(head: LazyTensor, embedding: LazyTensor, path: Path) -> None:
    """Raise :class:`ConfigError` where a tied model's file has a head that differs from the embedding."""
    blocks = zip(head.blocks(), embedding.blocks(), strict=True)
    if head.shape != embedding.shape or not all(torch.equal(a, b) for (_, a), (_, b) in blocks):
        raise ConfigError(
            f"{path}: tie_word_embeddings is true, and {param_names.HF_HEAD} is not {param_names.HF_EMBEDDING}",
            f"set tie_word_embeddings to false in {path / hf_config.CONFIG}, or take the head out",
        )


def companions(path: Path) -> list[Path]:
    """The tokenizer and licence files of a folder."""
    return [*(path / name for name in COMPANION_FILES if terms.is_of(path, path / name)), *terms.files_in(path)]


def copy_files(sources: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder, and fsync them."""
    for source in sources:
        shutil.copyfile(source, folder / source.name)
        files.sync_file(folder / source.name)


def network_weights(model: nn.Module) -> list[LazyTensor]:
    """A network's parameters by litgpt's names, not copied; without a tied head."""
    return [LazyTensor.of(name, parameter) for name, parameter in _parameters(model).items()]


def write(
    out: Path,
    content: Mapping[str, Any],
    weights: Iterable[LazyTensor],
    *,
    companions: Iterable[Path] = (),
    changes: Sequence[str] | None = (),
    shard_bytes: int = SHARD_BYTES,
    progress: Advance = lambda _: None,
) -> ModelFolder:
    """Write a model folder atomically: ``config.json``, the weights (Hugging Face's names), copies of ``companions``.

    ``changes`` since the base are listed in a Gemma's ``NOTICE``; None for a model without a base. One block of rows is
    in memory at a time. Raises :class:`~bafogpt.core.errors.ConflictError` where ``out`` exists, :class:`ConfigError`
    where the weights do not fit ``content``, and :class:`~bafogpt.core.errors.CorruptError` for NaN or infinite
    weights."""
    with files.new_folder(out) as partial:
        files.write_atomic(partial / hf_config.CONFIG, json.dumps(dict(content), indent=2) + "\n")
        copy_files(companions, partial)
        if changes is not None:
            terms.add_notice(partial, str(content.get("model_type")), changes)
        safetensors_io.write_folder(partial, list(weights), shard_bytes=shard_bytes, progress=progress)
        ModelFolder.open(partial)
    return ModelFolder.open(out)


def save(
    out: Path, model: nn.Module, config: Config, *, companions: Iterable[Path] = (), shard_bytes: int = SHARD_BYTES
) -> ModelFolder:
    """Write a network that is not sharded as a model folder, in its dtype."""
    weights = network_weights(model)
    tied = all(weight.name != param_names.HEAD for weight in weights)
    content = hf_config.from_litgpt(config, tie_embeddings=tied, dtype=dtype_name(weights[0].dtype))
    return write(
        out, content, param_names.to_hf(weights, config), companions=companions, changes=None, shard_bytes=shard_bytes
    )


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` as ``config.json`` spells it."""
    return str(dtype).removeprefix("torch.")


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A network's parameters by their bare names; without a tied head."""
    found = {param_names.bare(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    if found.get(param_names.HEAD) is found.get(param_names.EMBEDDING):
        found.pop(param_names.HEAD, None)
    return found


def _copy(weight: LazyTensor, parameter: nn.Parameter) -> None:
    """Copy a weight into a parameter; for a sharded one only this process's rows."""
    target: torch.Tensor = parameter.data
    start, columns = 0, None
    if isinstance(parameter, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        target = parameter.to_local()
        start = offset[0] if offset else 0
        columns = tuple(slice(first, first + size) for first, size in zip(offset[1:], shape[1:], strict=True))
    for first, block in weight.blocks(start, start + len(target)):
        rows = block[(slice(None), *columns)] if columns else block
        target[first - start : first - start + len(rows)].copy_(rows)


def _shown(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)
