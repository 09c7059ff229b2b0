"""Resizes a model's embedding and head for an extended tokenizer.

Rows of the base's pieces stay bit-identical. A new piece's row is the mean of the rows of its base tokens
(``subtokens``), which the tokenizer's lineage lists, or the mean of all rows (``mean``, as in the original BafoGPT).
Base ids without a row (Gemma-3's image token) and padding up to a multiple of 64 get the mean row. The base's rows are
read once; memory holds one block of them and the new rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bafogpt.core import digest, terms
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError
from bafogpt.data.vocabulary.files import LINEAGE, LINEAGE_SCHEMA, PADDING, TOKENIZER
from bafogpt.model.config import padded_vocab, vocab_fits
from bafogpt.model.formats import folder as folders
from bafogpt.model.formats import param_names
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.formats.lazy_tensor import LazyTensor, joined
from bafogpt.model.formats.safetensors_io import Advance

Init = Literal["mean", "subtokens"]
INITS: tuple[Init, ...] = ("mean", "subtokens")


@dataclass(frozen=True)
class Lineage:
    """The part of a ``tokenizer.lineage.json`` that is needed here."""

    folder: Path
    base_digest: str
    base_size: int
    size: int
    """Ids of the new tokenizer, including padding pieces."""
    pieces: np.ndarray
    """[n] int64: the piece of each constituent, counted from the first new one."""
    constituents: np.ndarray
    """[n] int64: ids of the base."""

    @classmethod
    def read(cls, folder: Path) -> Lineage:
        """Raises :class:`NotFoundError`, :class:`ConfigError` where the ``tokenizer.json`` beside it is another, and
        :class:`CorruptError` where it is inconsistent."""
        file, tokenizer = folder / LINEAGE, folder / TOKENIZER
        if not tokenizer.is_file() or not file.is_file():
            missing = (LINEAGE if tokenizer.is_file() else TOKENIZER) if folder.is_dir() else "such folder"
            raise NotFoundError(f"{folder}: no {missing}", "--tokenizer DIR, as 'bafogpt tokenizer extend' makes one")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["schema"] != LINEAGE_SCHEMA:
                raise ValueError(f"schema {content['schema']!r}")
            base, names_of = content["base"], _names_of(tokenizer)
            first, pieces, size = base["size"], content["pieces"], max(names_of) + 1
            if type(first) is not int or not 0 < first <= size - len(pieces):
                raise ValueError(f"a base of {first!r} ids and {len(pieces):,} pieces are not the tokenizer's {size:,}")
            unlearned = [names_of.get(number, "") for number in range(first + len(pieces), size)]
            if not all(PADDING.fullmatch(name) for name in unlearned):
                raise ValueError(f"it lacks the piece {next(n for n in unlearned if not PADDING.fullmatch(n))!r}")
            read = cls(folder, str(base["digest"]), first, size, *_constituents(pieces, first))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptError(f"{file}: not a lineage ({error})", "make the tokenizer again") from None
        if content["tokenizer"] != digest.of_file(tokenizer):
            raise ConfigError(f"{file} is not of the {TOKENIZER} beside it", "take both files from one tokenizer")
        return read

    @property
    def new(self) -> int:
        """Ids after the base's."""
        return self.size - self.base_size


def _names_of(tokenizer: Path) -> dict[int, str]:
    """The spelling of each id."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    added = {int(each["id"]): str(each["content"]) for each in content.get("added_tokens") or ()}
    return {int(number): str(name) for name, number in content["model"]["vocab"].items()} | added


def _constituents(pieces: list[Mapping[str, Any]], base_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of :class:`Lineage`; checks that ids follow the base's and every piece has a constituent."""
    counts = [len(piece["constituents"]) for piece in pieces]
    numbers = [number for piece in pieces for number in piece["constituents"]]
    if any(type(number) is not int for number in numbers):
        raise TypeError("a constituent is not a number")
    flat = np.array(numbers, dtype=np.int64)
    if [piece["id"] for piece in pieces] != list(range(base_size, base_size + len(pieces))) or not all(counts):
        raise ValueError("pieces are not numbered from the base's size on, or have no constituents")
    if flat.size and not (flat.min() >= 0 and flat.max() < base_size):
        raise ValueError("a constituent is not a token of the base")
    return np.repeat(np.arange(len(pieces), dtype=np.int64), counts), flat


@dataclass(frozen=True, kw_only=True)
class ExpandReport:
    """The resized model."""

    out: str
    init: Init
    base_vocabulary: int
    vocabulary: int
    """Rows, a multiple of 64."""
    pieces: int
    """New rows without padding."""
    tied: bool
    bytes: int


def expand(
    path: Path,
    tokenizer: Path,
    out: Path,
    *,
    init: Init = "subtokens",
    progress: Advance = lambda _: None,
) -> ExpandReport:
    """Write the model ``path``, with rows for the pieces of the folder ``tokenizer``, to the new folder ``out``.

    Raises :class:`ConfigError` where the tokenizer does not extend the model's, and what :meth:`ModelFolder.open`,
    :meth:`Lineage.read` and :func:`~bafogpt.model.formats.folder.write` raise; ``out`` is not created then.
    """
    model, lineage = ModelFolder.open(path), Lineage.read(tokenizer)
    _require_base(model, lineage)
    rows = padded_vocab(lineage.size)
    weights = dict(model.weights)
    for name in (param_names.HF_EMBEDDING, param_names.HF_HEAD):
        if name in weights:
            weights[name] = _expanded(weights[name], lineage, rows, init)
    companions = [
        each for each in model.companions() if each.name == "generation_config.json" or terms.is_terms(each.name)
    ]
    folders.write(
        out,
        {**model.content, "vocab_size": rows},
        weights.values(),
        companions=[*folders.companions(tokenizer), *companions],
        changes=(f"tokenizer, config.json, weights: {lineage.new:,} new tokens and their rows (expand, {init})",),
        progress=progress,
    )
    return ExpandReport(
        out=str(out),
        init=init,
        base_vocabulary=lineage.base_size,
        vocabulary=rows,
        pieces=lineage.new,
        tied=model.tied,
        bytes=sum(weight.bytes for weight in weights.values()),
    )


def _require_base(model: ModelFolder, lineage: Lineage) -> None:
    """Raise :class:`ConfigError` unless the tokenizer extends the model's."""
    own, hint = model.path / TOKENIZER, f"bafogpt tokenizer extend --base {model.path} … makes one that fits"
    if own.is_file() and digest.of_file(own) != lineage.base_digest:
        raise ConfigError(f"{lineage.folder} extends another tokenizer than {own}", hint)
    if own.is_file() and max(_names_of(own)) + 1 != lineage.base_size:
        raise CorruptError(f"{lineage.folder}: its base has {lineage.base_size:,} ids, {own} another number", hint)
    rows = model.config.padded_vocab_size
    if not vocab_fits(rows, lineage.base_size, same_tokenizer=own.is_file()):
        message = f"{lineage.folder} extends a tokenizer of {lineage.base_size:,}, {model.path} has {rows:,} rows"
        raise ConfigError(message, hint)
    last = int(lineage.constituents.max(initial=0))
    if last >= rows:
        raise ConfigError(f"{lineage.folder}: a piece contains token {last:,}, {model.path} has {rows:,} rows", hint)


def _expanded(base: LazyTensor, lineage: Lineage, rows: int, init: Init) -> LazyTensor:
    """The base's rows, the mean row for its ids without one, the new rows, padding."""
    kept = base.part(base.name, 0, min(lineage.base_size, base.rows))
    mean, sums = _one_pass(kept, lineage if init == "subtokens" and lineage.pieces.size else None)
    row = mean.to(base.dtype)

    def repeated(count: int) -> list[LazyTensor]:
        shape = (count, len(row))
        return (
            [LazyTensor(base.name, shape, base.dtype, lambda start, stop: row.expand(stop - start, -1))]
            if count
            else []
        )

    parts = [kept, *repeated(lineage.base_size - kept.rows)]
    if sums is not None:
        counts = torch.from_numpy(np.bincount(lineage.pieces))
        parts.append(LazyTensor.of(base.name, sums.div_(counts[:, None]).to(base.dtype)))
    return joined(base.name, [*parts, *repeated(rows - sum(part.rows for part in parts))])


def _one_pass(base: LazyTensor, lineage: Lineage | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean row [d], and with a lineage the sum of each new piece's rows [pieces, d]; float32."""
    width = base.shape[1]
    total = torch.zeros(width, dtype=torch.float64)
    sums, order, wanted = None, np.array([], np.int64), np.array([], np.int64)
    if lineage is not None:
        sums = torch.zeros(int(lineage.pieces[-1]) + 1, width)
        order = np.argsort(lineage.constituents, kind="stable")
        wanted = lineage.constituents[order]
    for start, block in base.blocks():
        values = block.float()
        total += values.sum(dim=0)  # float32 within a block, float64 over them
        if lineage is not None and sums is not None:
            here = slice(*np.searchsorted(wanted, (start, start + len(block))))
            sums.index_add_(
                0, torch.from_numpy(lineage.pieces[order[here]]), values[torch.from_numpy(wanted[here] - start)]
            )
    return (total / base.rows).float(), sums
