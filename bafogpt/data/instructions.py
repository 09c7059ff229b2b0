"""Turns instruction files into a dataset: conversations packed into samples, with the spans of the answers.

The dataset has the usual format (:mod:`bafogpt.storage.tokens`), so exact resume and ``runs verify`` work for
fine-tuning as for pretraining. Equal inputs give equal shards. All records are held in memory: a million conversations
take some gigabytes.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bafogpt.core.errors import DataError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.data import curriculum, instruction_mix, packing, sources, starter
from bafogpt.data.documents import TextFile, kind_of, stem_of
from bafogpt.data.instruction_mix import InstructionRecord
from bafogpt.data.messages import from_record
from bafogpt.data.prepare import finish_dataset, require_no_dataset
from bafogpt.data.prompts import PromptStyle, TokenizedExample
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import Packing, TokenManifest
from bafogpt.storage.tokens.writer import SHARD_BYTES, TokenWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 1024
STAGE = "instructions"
_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class InstructionOptions:
    """How conversations become a dataset. Raises :class:`UsageError` for values out of range."""

    context: int = 2048
    """Tokens per sample, T: the trainer's ``data.sequence_length``."""
    mix: str = "all"
    """One of :data:`bafogpt.data.instruction_mix.MIXES`."""
    learn: Literal["answers", "all"] = "answers"
    """Which tokens contribute to the loss."""
    too_long: Literal["cut", "drop"] = "cut"
    """What happens to a conversation of more than T tokens: its end is cut, or it is dropped."""
    validation: float = 0.02
    """Share of the conversations that is held out."""
    seed: int = 1
    """Seed of the training order."""
    overwrite: bool = False
    """Whether an existing dataset may be replaced."""
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.context < 16:
            raise UsageError(f"a context of {self.context} tokens holds no conversation", "--context 2048")
        if not 0 <= self.validation <= 0.5:
            raise UsageError(f"validation share {self.validation} is not in [0, 0.5]", "--validation 0.02")


@dataclass
class InstructionReport:
    """What was read and what was written."""

    url: str = ""
    files: int = 0
    records: int = 0
    """Lines that were read."""
    conversations: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    """Written, by split; a record of weight 2 counts twice."""
    cut: int = 0
    """Conversations whose end did not fit."""
    dropped: int = 0
    """Conversations left out because they did not fit."""
    duplicates: int = 0
    """Records left out because an equal one came before."""
    samples: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    tokens: int = 0
    """Of the training conversations, without filling."""
    learned: int = 0
    """Of these, tokens that contribute to the loss."""
    filled: float = 0.0
    """Share of the training samples that is not filling."""
    seconds: float = 0.0
    manifest: TokenManifest | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the manifest."""
        return {name: value for name, value in asdict(self).items() if name != "manifest"}


def prepare(
    files: Sequence[str],
    *,
    style: PromptStyle,
    tokenizer: Tokenizer,
    out: Bucket,
    options: InstructionOptions | None = None,
    settings: Settings | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> InstructionReport:
    """Write the dataset ``out`` from JSON lines; the records of ``FILE:2`` are seen twice an epoch.

    Raises :class:`~bafogpt.core.errors.ConflictError` where a dataset exists and ``overwrite`` is not set,
    :class:`DataError` naming file and line for an unusable record, and what the bucket raises.
    """
    options, began = options or InstructionOptions(), time.monotonic()
    require_no_dataset(out, options.overwrite)
    found = [pair for each in files for pair in _find(each, settings)]
    report = InstructionReport(url=out.url, files=len(found))
    records = instruction_mix.apply_mix(_distinct(_read(found, progress), report), options.mix)
    is_held_out = instruction_mix.held_out(records, options.validation)
    packed = Packing(options.context, style.name, style.template)
    size, dtype = options.shard_bytes, tokenizer.dtype
    with (
        tempfile.TemporaryDirectory(prefix="bafogpt-instructions-") as folder,
        TokenWriter(out, dtype=dtype, shard_bytes=size, workdir=Path(folder), packing=packed) as writer,
    ):
        for split, held in (("validation", True), ("train", False)):
            side = [record for record, is_held in zip(records, is_held_out, strict=True) if is_held is held]
            ordered = side if held else _order(side, options.seed)
            for sample in packing.pack(_fitting(ordered, style, options, report), options.context):
                _write(writer, split, sample, tokenizer, report)
            if report.samples[split]:  # the last sample's last target is the token after it
                writer.add(split, STAGE, "end", _end_tokens(1, tokenizer))
        if not report.samples["train"]:
            raise DataError("no conversation is left to train on", "--validation 0, or a larger --context")
        report.manifest = finish_dataset(writer, tokenizer, [file for file, _ in found], add_bos=tokenizer.add_bos)
    report.filled = report.tokens / (report.samples["train"] * options.context)
    report.seconds = time.monotonic() - began
    return report


def _find(spec: str, settings: Settings | None) -> list[tuple[TextFile, float]]:
    """The instruction files that ``FILE``, ``FOLDER`` or ``starter`` names, with their weight (``FILE:2``)."""
    weighted = _WEIGHTED.fullmatch(spec)
    name, weight = (weighted[1], float(weighted[2])) if weighted else (spec, 1.0)
    if not weight:
        raise UsageError(f"{spec}: a weight of 0", f"leave {name} out")
    found = starter.instructions() if name == sources.STARTER else sources.find(name, settings)
    usable = [file for file in found if kind_of(file.name) == ".jsonl"]
    if not usable:
        raise DataError(f"{name}: no file of instructions (.jsonl, also .gz or .zst)", f"ls {name}")
    return [(file, weight) for file in usable]


def _read(files: Sequence[tuple[TextFile, float]], progress: Callable[[int], None]) -> Iterator[InstructionRecord]:
    """The records of all files in their order."""
    for file, weight in files:
        for where, raw in file.records():
            try:
                messages = tuple(from_record(raw))
            except ValueError as error:
                raise DataError(f"{where}: {error}", f"edit {file.path}") from None
            lang = str(raw.get("lang") or "")
            yield InstructionRecord(
                messages=messages,
                where=where,
                source=str(raw.get("source") or stem_of(file.name)),
                pair=str(raw.get("pair") or ""),
                lang_in=str(raw.get("lang_in") or lang),
                lang_out=str(raw.get("lang_out") or lang),
                weight=weight,
            )
            progress(1)


def _distinct(records: Iterator[InstructionRecord], report: InstructionReport) -> list[InstructionRecord]:
    """The records without duplicates."""
    seen: set[bytes] = set()
    kept = []
    for record in records:
        report.records += 1
        if record.key in seen:
            report.duplicates += 1
            continue
        seen.add(record.key)
        kept.append(record)
    if not kept:
        raise DataError("the files hold no record", "bafogpt data instructions --help")
    return kept


def _order(records: Sequence[InstructionRecord], seed: int) -> list[InstructionRecord]:
    """Each record repeated by its weight, in an order that depends only on seed and content."""
    copies = []
    for record in records:
        whole = int(record.weight)
        lot = curriculum.document_key(f"{seed} part {record.key.hex()}")
        again = whole + curriculum.held_out(lot, record.weight - whole)
        copies += [(curriculum.document_key(f"{seed} {copy} {record.key.hex()}"), record) for copy in range(again)]
    return [record for _, record in sorted(copies, key=lambda each: each[0])]


def _fitting(
    records: Sequence[InstructionRecord], style: PromptStyle, options: InstructionOptions, report: InstructionReport
) -> Iterator[tuple[tuple[InstructionRecord, TokenizedExample], int]]:
    """Tokenised conversations of at most ``context`` tokens, with their length."""
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        for record, example in zip(batch, style.examples([each.messages for each in batch]), strict=True):
            fitted = _fitted(record, example, options)
            if fitted is None:
                report.dropped += 1
                continue
            report.cut += fitted is not example
            if options.learn == "all":
                fitted = TokenizedExample(fitted.ids, ((1, len(fitted.ids)),))
            yield (record, fitted), len(fitted.ids)


def _fitted(
    record: InstructionRecord, example: TokenizedExample, options: InstructionOptions
) -> TokenizedExample | None:
    """The example, or its beginning, or None where it is to be dropped."""
    room, size = options.context, len(example.ids)
    if size <= room:
        return example
    if options.too_long == "drop":
        return None
    answers = tuple((begin, min(end, room)) for begin, end in example.answers if begin < room)
    if not answers:
        asked = example.answers[0][0] if example.answers else size
        raise DataError(
            f"{record.where}: the prompt alone has {asked} tokens, more than a context of {room}",
            f"--context {1 << (asked + 1).bit_length()}, or --too-long drop",
        )
    return TokenizedExample(example.ids[:room], answers)


def _write(
    writer: TokenWriter,
    split: str,
    sample: packing.Bin[tuple[InstructionRecord, TokenizedExample]],
    tokenizer: Tokenizer,
    report: InstructionReport,
) -> None:
    """Write one sample; end tokens fill the room after its last conversation."""
    import numpy as np

    for number, (record, example) in enumerate(sample.items):
        ids = example.ids
        report.conversations[split] += 1
        if split == "train":
            report.tokens += len(ids)
            report.learned += sum(end - begin for begin, end in example.answers)
        if number == len(sample.items) - 1 and sample.room:
            ids = np.concatenate([ids, _end_tokens(sample.room, tokenizer)])
        writer.add(split, STAGE, record.source, ids, example.answers)
    report.samples[split] += 1


def _end_tokens(count: int, tokenizer: Tokenizer) -> NDArray[Any]:
    """``count`` end tokens."""
    import numpy as np

    return np.full(count, tokenizer.eos_id, tokenizer.dtype)
