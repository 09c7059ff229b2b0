"""Sources to a dataset: documents are read and tokenised once, then written in the curriculum's order.

The first pass reads every source in order, tokenises in batches and spills tokens by stage to a local disk; the
second writes them, validation first, then training with replay mixed in, in the curriculum's order or shuffled. The
manifest is written last, so a dataset exists whole or not at all, and equal inputs give equal shards.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bafogpt.core.errors import ConflictError, DataError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.data import curriculum
from bafogpt.data import sources as text_sources
from bafogpt.data.curriculum import REPLAY, STAGES
from bafogpt.data.documents import Document
from bafogpt.data.token_cache import CachedDoc, CachedLocation, TokenCache
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import MANIFEST, TextSource, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.writer import SHARD_BYTES, TokenWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

Order = Literal["curriculum", "shuffled"]
_Planned: TypeAlias = tuple[str, str, int, bool]
"""A training document: the stage it is met in, the one it is of, where it lies there, whether it is replay."""

BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 4 << 20


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How sources become a dataset. Raises :class:`UsageError` for shares that are none."""

    stage: str | None = None
    """Stage of the documents whose record does not name one."""
    replay_share: float = 0.05
    """Share of the training tokens that is English replay, as far as there is any."""
    order: Order = "curriculum"
    """How training meets the documents; which they are is the same."""
    seed: int = 1
    """Of the shuffled order."""
    validation: float = 0.02
    """Share of each stage's documents that is held out."""
    bos: bool | None = None
    """Whether documents and samples begin with the tokenizer's ``<bos>``; None: where the tokenizer itself adds it."""
    overwrite: bool = False
    """Whether a dataset that is there already may be replaced."""
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.replay_share < 1:
            raise UsageError(f"replay share {self.replay_share} is not in [0, 1)", "--replay-share 0.05")
        if not 0 <= self.validation <= 0.5:
            raise UsageError(f"validation share {self.validation} is not in [0, 0.5]", "--validation 0.02")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} is not in [0, 2^63)", "--seed 1")
        if self.stage is not None:
            curriculum.require_stage(self.stage, "--stage")


@dataclass
class Count:
    """How much text there is of one kind, before anything is added to it."""

    documents: int = 0
    words: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, text: str, tokens: int) -> None:
        """Count one document."""
        self.documents += 1
        self.words += len(text.split())
        self.tokens += tokens
        self.bytes += len(text.encode())


@dataclass
class PrepareReport:
    """What was read and what was written. Tokens of ``stages`` and ``sources`` include each document's end."""

    url: str
    stages: dict[str, Count] = field(default_factory=dict)
    """What was read, by stage, in curriculum order."""
    sources: dict[str, Count] = field(default_factory=dict)
    """What was read, by source."""
    files: int = 0
    empty: int = 0
    """Records without text."""
    duplicates: int = 0
    """Documents dropped because the validation split holds their text already."""
    train_tokens: int = 0
    validation_tokens: int = 0
    replay_share: float = 0.0
    """Share of the training tokens that is replay."""
    seconds: float = 0.0
    manifest: TokenManifest | None = None

    @property
    def total(self) -> Count:
        """All that was read."""
        counts = self.stages.values()
        names = ("documents", "words", "tokens", "bytes")
        return Count(*(sum(getattr(each, name) for each in counts) for name in names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the manifest."""
        counts = {"stages": self.stages, "sources": self.sources}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*counts, "manifest")}
        nested = {kind: {name: asdict(each) for name, each in named.items()} for kind, named in counts.items()}
        return {**plain, "total": asdict(self.total), **nested}


def prepare(
    sources: Sequence[str],
    *,
    tokenizer: Tokenizer,
    out: Bucket,
    options: PrepareOptions | None = None,
    settings: Settings | None = None,
    progress: Callable[[int], None] | None = None,
) -> PrepareReport:
    """Make the dataset ``out`` from ``sources`` in their order; ``progress`` is told of documents as they are read.

    Raises :class:`ConflictError` where a dataset is there already and ``overwrite`` is not set,
    :class:`DataError` for text that is not usable, and what the bucket raises; nothing that a reader of ``out``
    can see has changed then. The temporary folder (``TMPDIR``) needs room for all tokens and a shard of each split.
    """
    options = options or PrepareOptions()
    began = time.monotonic()
    if not options.overwrite and out.exists(MANIFEST):
        raise ConflictError(f"{out.url} holds a dataset already", "add --overwrite, or choose another --out")
    if options.bos and tokenizer.bos_id is None:
        raise UsageError(f"tokenizer {tokenizer.name} has no token for the begin of a text", "leave out --bos")
    add_bos = tokenizer.add_bos if options.bos is None else options.bos
    files = [file for source in sources for file in text_sources.find(source, settings)]
    report = PrepareReport(url=out.url, files=len(files))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bafogpt-prepare-")))
        spill = stack.enter_context(contextlib.closing(TokenCache(folder, tokenizer.dtype, options.validation)))
        documents = (document for file in files for document in file.read(options.stage))
        _spill(documents, tokenizer, add_bos, spill, report, progress)
        report.empty = sum(file.empty for file in files)
        if not any(stage in report.stages for stage in STAGES):
            what = "only replay text" if report.stages else f"no text ({report.empty} empty records)"
            raise DataError(f"{', '.join(sources)}: {what}", f"add text of a stage: {', '.join(STAGES)}")
        writer = TokenWriter(out, dtype=tokenizer.dtype, shard_bytes=options.shard_bytes, workdir=folder)
        _write(spill, stack.enter_context(writer), options, report)
        report.manifest = writer.finish(
            tokenizer=TokenizerInfo(tokenizer.name, tokenizer.digest, tokenizer.eos_id, tokenizer.bos_id, add_bos),
            vocab_size=tokenizer.vocab_size,
            sources=[TextSource(file.name, file.digest, file.documents) for file in files],
            tokenizer_file=tokenizer.file,
        )
    report.seconds = time.monotonic() - began
    return report


def _spill(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    bos: bool,
    spill: TokenCache,
    report: PrepareReport,
    progress: Callable[[int], None] | None,
) -> None:
    """First pass: tokenise, close every document with one end token, spill by stage, count."""
    stages: dict[str, Count] = {}
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            tokens = _framed(ids, tokenizer, bos)
            key, size = curriculum.document_key(document.text), len(document.text.encode())
            spill.add(document.stage, CachedDoc(key, document.source, tokens, size, document.lang))
            stages.setdefault(document.stage, Count()).add(document.text, len(tokens))
            report.sources.setdefault(document.source, Count()).add(document.text, len(tokens))
        if progress is not None:
            progress(len(batch))
    spill.close()
    report.stages = {stage: stages[stage] for stage in curriculum.KNOWN if stage in stages}


def _write(spill: TokenCache, writer: TokenWriter, options: PrepareOptions, report: PrepareReport) -> None:
    """Second pass: validation stage by stage, then training in its order with replay mixed in."""
    exceptions = spill.exceptions()

    def is_held_out(document: CachedLocation | CachedDoc) -> bool:
        return document.key in exceptions or curriculum.held_out(document.key, options.validation)

    seen: set[bytes] = set()
    for stage in curriculum.KNOWN:
        for document in filter(is_held_out, spill.read(stage)):
            if document.key in seen:
                report.duplicates += 1
                continue
            seen.add(document.key)
            source, tokens = document.source, document.tokens
            writer.add("validation", stage, source, tokens, size=document.bytes, language=document.language)
            report.validation_tokens += document.size

    def train(stage: str) -> Iterator[CachedLocation]:
        return (place for place in spill.places(stage) if not is_held_out(place))

    available = {stage: tally.train_tokens for stage, tally in spill.tallies.items()}
    replay_tokens = available.pop(REPLAY, 0)
    ratio = curriculum.replay_ratio(options.replay_share, sum(available.values()), replay_tokens)
    stages = ((stage, train(stage)) for stage in STAGES)
    ordered = curriculum.training_order(stages, train(REPLAY), ratio, lambda each: each.size)
    plan = _in_order(ordered) if options.order == "curriculum" else _shuffled(ordered, options.seed)
    _write_training(plan, spill, writer, report)


def _in_order(ordered: Iterable[tuple[str, CachedLocation, bool]]) -> Iterator[_Planned]:
    """As the curriculum has it."""
    return ((stage, place.stage, place.start, is_replay) for stage, place, is_replay in ordered)


def _shuffled(ordered: Iterable[tuple[str, CachedLocation, bool]], seed: int) -> Iterator[_Planned]:
    """The same documents by their ranks. 18 bytes of memory each."""
    import numpy as np

    stages, replays, starts, ranks = bytearray(), bytearray(), array("Q"), array("Q")
    for _, place, is_replay in ordered:
        stages.append(curriculum.KNOWN.index(place.stage))
        replays.append(is_replay)
        starts.append(place.start)
        ranks.append(curriculum.shuffle_rank(place.key, seed))
    for index in np.argsort(np.frombuffer(ranks, np.uint64), kind="stable"):
        yield curriculum.SHUFFLED, curriculum.KNOWN[stages[index]], starts[index], bool(replays[index])


def _write_training(plan: Iterable[_Planned], spill: TokenCache, writer: TokenWriter, report: PrepareReport) -> None:
    replayed = written = 0
    with spill.reader() as at:
        for stage, origin, start, is_replay in plan:
            document = at(origin, start)
            source = f"{REPLAY}/{document.source}" if is_replay else document.source
            writer.add("train", stage, source, document.tokens, size=document.bytes, language=document.language)
            report.train_tokens += document.size
            replayed += document.size if is_replay else 0
            written += 1
    report.replay_share = replayed / report.train_tokens if report.train_tokens else 0.0
    if not written:
        raise DataError("every document is held out for validation, none is left to train on", "--validation 0")


def _framed(ids: NDArray[Any], tokenizer: Tokenizer, bos: bool) -> NDArray[Any]:
    """``ids`` with the one end token, and the begin token where it is wanted."""
    import numpy as np

    begin = [tokenizer.bos_id] if bos else []
    return np.concatenate([np.array(begin, ids.dtype), ids, np.array([tokenizer.eos_id], ids.dtype)])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists that keep every core busy and stay small in memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
