"""Reads safetensors files by rows, and writes them one block of rows at a time.

The library can only write tensors that are all in memory, so the format is written here: eight bytes of length, a JSON
header, then the bytes of the tensors (https://huggingface.co/docs/safetensors). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bafogpt.core import files
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, first_line
from bafogpt.model.formats.lazy_tensor import LazyTensor, joined

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest file, unless one tensor is larger; transformers' default."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SHARDING = "DCP_SHARDING_INFO"
"""Metadata key under which torch's distributed checkpoint stores which slice of a tensor a file holds."""

Advance = Callable[[int], None]
"""Called with the number of bytes written."""


def read_folder(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of ``model.safetensors``, or of the files in ``model.safetensors.index.json``.

    Raises :class:`NotFoundError` without either, and :class:`CorruptError` for an invalid index and for missing or torn
    files.
    """
    if (folder / INDEX).is_file():
        return _indexed(folder, folder / INDEX)
    if (folder / FILE).is_file():
        return read_file(folder / FILE)
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")])
    if pickled:
        message = f"{folder} has {pickled[0].name} and no safetensors; pickled files are not read: they can run code"
        raise NotFoundError(message, "pull or save the model as safetensors")
    raise NotFoundError(f"{folder} has no {FILE}", f"ls {folder}")


def read_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file by name. Raises :class:`CorruptError` for a torn one."""
    return {name: weight for name, (weight, _) in _read_file(path).items()}


def read_slices(paths: Sequence[Path]) -> dict[str, LazyTensor]:
    """The tensors of a sharded checkpoint, whose files each hold some rows of each tensor.

    Raises :class:`CorruptError` for a torn file or missing rows, and :class:`ConfigError` for shards of columns.
    """
    found: dict[str, list[tuple[tuple[int, ...], LazyTensor]]] = {}
    for path in paths:
        for name, (weight, offsets) in _read_file(path).items():
            found.setdefault(name, []).append((offsets, weight))
    return {name: _assembled(name, slices, paths[0].parent) for name, slices in found.items()}


def write_folder(
    folder: Path, weights: Sequence[LazyTensor], *, shard_bytes: int = SHARD_BYTES, progress: Advance = lambda _: None
) -> list[Path]:
    """Write tensors to ``model.safetensors`` in ``folder``, or to several files and an index, and fsync them.

    One block of rows is in memory at a time. Raises :class:`~bafogpt.core.errors.DiskFullError`, if possible before
    writing."""
    files.require_space(folder, sum(weight.bytes for weight in weights), "the model")
    shards = _shards(weights, shard_bytes)
    written = []
    with files.disk_full_named(folder):
        for number, shard in enumerate(shards, start=1):
            name = FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_file(folder / name, shard, progress)
            written.append(folder / name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(weight.bytes for weight in weights)},
            "weight_map": {w.name: path.name for path, shard in zip(written, shards, strict=True) for w in shard},
        }
        files.write_atomic(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return written


def _indexed(folder: Path, index: Path) -> dict[str, LazyTensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{index}: not an index of tensors ({error})", f"head -c 200 {index}") from None
    for file in sorted(set(names.values())):
        if len(files.safe_relative(file).parts) != 1:
            raise CorruptError(f"{index} names a file in another folder: {file!r}", "pull the model again")
        if not (folder / file).is_file():
            raise CorruptError(f"{folder}: {file} is missing, and its index names it", "pull the model again")
    opened = {file: read_file(folder / file) for file in sorted(set(names.values()))}
    for tensor, file in names.items():
        if tensor not in opened[file]:
            raise CorruptError(f"{folder / file} has no {tensor}, and its index says it has", "pull the model again")
    return {tensor: opened[file][tensor] for tensor, file in names.items()}


def _read_file(path: Path) -> dict[str, tuple[LazyTensor, tuple[int, ...]]]:
    """Each tensor of a file, with its offsets in the whole tensor; zeros if it is not a slice."""
    try:
        with safe_open(path, framework="pt") as file:
            sharding = json.loads((file.metadata() or {}).get(_SHARDING, "null"))
            found = {}
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                offsets = tuple(sharding[name]["saved_offsets"]) if sharding else (0,) * len(shape)
                found[name] = (
                    LazyTensor(name, shape, _dtype(part.get_dtype(), path, name), _reader(path, name)),
                    offsets,
                )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is not a whole safetensors file: {first_line(error)}"
        raise CorruptError(message, "pull or export the model again") from None
    except OSError as error:
        raise CorruptError(f"{path} cannot be read: {error}", f"ls -l {path}") from None
    return found


def _reader(path: Path, name: str) -> Callable[[int, int], torch.Tensor]:
    def read(start: int, stop: int) -> torch.Tensor:
        # opened each time: the pages of a file that stays mapped count as this process's memory
        with safe_open(path, framework="pt") as file:
            rows: torch.Tensor = file.get_slice(name)[start:stop]
        if rows.is_floating_point() and rows.numel() and not all(math.isfinite(each) for each in torch.aminmax(rows)):
            raise CorruptError(f"{path}: {name} has NaN or infinite values", "pull the model, or train the run, again")
        return rows

    return read


def _dtype(name: str, path: Path, tensor: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError(f"{path}: {tensor} is {name}; known are {', '.join(_DTYPES)}", "convert the model to BF16")
    return _DTYPES[name]


def _assembled(name: str, slices: list[tuple[tuple[int, ...], LazyTensor]], folder: Path) -> LazyTensor:
    """One tensor of its slices, which must be consecutive rows."""
    slices = sorted(slices, key=lambda each: each[0])
    parts, end = [], 0
    for offsets, weight in slices:
        if any(offsets[1:]):
            raise ConfigError(f"{folder}: {name} is not cut by rows", "export the run where it was made")
        if offsets and offsets[0] != end:
            raise CorruptError(f"{folder}: rows {end} to {offsets[0]} of {name} are missing", "bafogpt runs show RUN")
        end += weight.rows if offsets else 0
        parts.append(weight)
    return parts[0] if len(parts) == 1 else joined(name, parts)


def _shards(weights: Sequence[LazyTensor], shard_bytes: int) -> list[list[LazyTensor]]:
    """The tensors in order, split into files of at most ``shard_bytes``."""
    shards: list[list[LazyTensor]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.bytes
    return shards


def _write_file(path: Path, weights: Iterable[LazyTensor], progress: Advance) -> None:
    # wider elements first, so that every tensor is aligned
    ordered = sorted(weights, key=lambda weight: -weight.dtype.itemsize)
    with path.open("wb") as file:
        file.write(_header(ordered))
        for weight in ordered:
            rows = 0
            for _, block in weight.blocks():
                assert block.dtype == weight.dtype and tuple(block.shape[1:]) == weight.shape[1:], weight.name
                file.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                rows += len(block)
                progress(block.nbytes)
            assert rows == weight.rows, weight.name
        file.flush()
        os.fsync(file.fileno())


def _header(weights: Sequence[LazyTensor]) -> bytes:
    entries: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for weight in weights:
        entries[weight.name] = {
            "dtype": _NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.bytes],
        }
        offset += weight.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
