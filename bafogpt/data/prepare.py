"""Tokenises text sources into a dataset, in curriculum order or shuffled.

The first pass reads every source in order, tokenises in batches and caches the tokens by stage on a local disk. The
second pass writes them: validation first, then training with replay mixed in. The manifest is written last, so a
dataset exists whole or not at all, and equal inputs give equal shards.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bafogpt.core.errors import ConflictError, DataError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.data import curriculum
from bafogpt.data import sources as text_sources
from bafogpt.data.curriculum import REPLAY, STAGES
from bafogpt.data.documents import Document, TextFile
from bafogpt.data.token_cache import CachedDoc, CachedLocation, TokenCache
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import MANIFEST, TextSource, TokenizerInfo, TokenManifest
from bafogpt.storage.tokens.writer import SHARD_BYTES, TokenWriter

TrainingOrder = Literal["curriculum", "shuffled"]
_Planned: TypeAlias = tuple[str, str, int, bool]
"""A training document: the stage it is trained in, its own stage, its offset in that stage's cache, if it is replay."""

BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 4 << 20


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How sources become a dataset. Raises :class:`UsageError` for values out of range."""

    stage: str | None = None
    """Stage of documents whose record does not name one."""
    replay_share: float = 0.05
    """Target share of the training tokens that is English replay."""
    order: TrainingOrder = "curriculum"
    seed: int = 1
    """Seed of the shuffled order."""
    validation: float = 0.02
    """Share of each stage's documents that is held out."""
    bos: bool | None = None
    """Whether documents and samples begin with the tokenizer's ``<bos>``; None: as the tokenizer itself does."""
    overwrite: bool = False
    """Whether an existing dataset may be replaced."""
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
    """Amount of text."""

    documents: int = 0
    words: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, text: str, tokens: int) -> None:
        self.documents += 1
        self.words += len(text.split())
        self.tokens += tokens
        self.bytes += len(text.encode())


@dataclass
class PrepareReport:
    """What was read and written. Token counts of ``stages`` and ``sources`` include each document's end token."""

    url: str
    stages: dict[str, Count] = field(default_factory=dict)
    """By stage, in curriculum order."""
    sources: dict[str, Count] = field(default_factory=dict)
    files: int = 0
    empty: int = 0
    """Records without text."""
    duplicates: int = 0
    """Documents left out because the validation split already holds their text."""
    train_tokens: int = 0
    validation_tokens: int = 0
    replay_share: float = 0.0
    """Share of the training tokens that is replay."""
    seconds: float = 0.0
    manifest: TokenManifest | None = None

    @property
    def total(self) -> Count:
        return Count(*map(sum, zip(*(astuple(each) for each in self.stages.values()), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the manifest."""
        plain = {**asdict(replace(self, manifest=None)), "total": asdict(self.total)}
        del plain["manifest"]
        return plain


def prepare(
    sources: Sequence[str],
    *,
    tokenizer: Tokenizer,
    out: Bucket,
    options: PrepareOptions | None = None,
    settings: Settings | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> PrepareReport:
    """Write the dataset ``out`` from ``sources``; ``progress`` is called with the number of documents read.

    The temporary folder (``TMPDIR``) needs room for all tokens and one shard of each split. Raises
    :class:`ConflictError` where a dataset exists and ``overwrite`` is not set, :class:`DataError` for unusable text,
    and what the bucket raises; readers of ``out`` then see no change.
    """
    options = options or PrepareOptions()
    began = time.monotonic()
    require_no_dataset(out, options.overwrite)
    if options.bos and tokenizer.bos_id is None:
        raise UsageError(f"tokenizer {tokenizer.name} has no token for the begin of a text", "leave out --bos")
    add_bos = tokenizer.add_bos if options.bos is None else options.bos
    files = [file for source in sources for file in text_sources.find(source, settings)]
    report = PrepareReport(url=out.url, files=len(files))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bafogpt-prepare-")))
        cache = stack.enter_context(contextlib.closing(TokenCache(folder, tokenizer.dtype, options.validation)))
        documents = (document for file in files for document in file.read(options.stage))
        _tokenise(documents, tokenizer, add_bos, cache, report, progress)
        report.empty = sum(file.empty for file in files)
        if not any(stage in report.stages for stage in STAGES):
            what = "only replay text" if report.stages else f"no text ({report.empty} empty records)"
            raise DataError(f"{', '.join(sources)}: {what}", f"add text of a stage: {', '.join(STAGES)}")
        writer = TokenWriter(out, dtype=tokenizer.dtype, shard_bytes=options.shard_bytes, workdir=folder)
        _write(cache, stack.enter_context(writer), options, report)
        report.manifest = finish_dataset(writer, tokenizer, files, add_bos=add_bos)
    report.seconds = time.monotonic() - began
    return report


def require_no_dataset(out: Bucket, overwrite: bool) -> None:
    """Raise :class:`ConflictError` where a dataset exists, unless it may be overwritten."""
    if not overwrite and out.exists(MANIFEST):
        raise ConflictError(f"{out.url} holds a dataset already", "add --overwrite, or choose another --out")


def finish_dataset(
    writer: TokenWriter, tokenizer: Tokenizer, files: Iterable[TextFile], *, add_bos: bool
) -> TokenManifest:
    """Write the last shards, the tokenizer and the manifest."""
    return writer.finish(
        tokenizer=TokenizerInfo(tokenizer.name, tokenizer.digest, tokenizer.eos_id, tokenizer.bos_id, add_bos),
        vocab_size=tokenizer.vocab_size,
        sources=[TextSource(file.name, file.digest, file.documents) for file in files],
        tokenizer_file=tokenizer.file,
    )


def _tokenise(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    bos: bool,
    cache: TokenCache,
    report: PrepareReport,
    progress: Callable[[int], None],
) -> None:
    """First pass: tokenise documents, add one end token (and ``<bos>``) to each, cache them by stage, count."""
    import numpy as np

    stages: dict[str, Count] = {}
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            begin = np.array([tokenizer.bos_id] if bos else [], ids.dtype)
            tokens = np.concatenate([begin, ids, np.array([tokenizer.eos_id], ids.dtype)])
            key, size = curriculum.document_key(document.text), len(document.text.encode())
            cache.add(document.stage, CachedDoc(key, document.source, tokens, size, document.lang))
            stages.setdefault(document.stage, Count()).add(document.text, len(tokens))
            report.sources.setdefault(document.source, Count()).add(document.text, len(tokens))
        progress(len(batch))
    cache.close()
    report.stages = {stage: stages[stage] for stage in curriculum.KNOWN if stage in stages}


def _write(cache: TokenCache, writer: TokenWriter, options: PrepareOptions, report: PrepareReport) -> None:
    """Second pass: validation stage by stage, then training in its order with replay mixed in."""
    exceptions = cache.exceptions()

    def is_held_out(document: CachedLocation | CachedDoc) -> bool:
        return document.key in exceptions or curriculum.held_out(document.key, options.validation)

    def add(split: str, stage: str, document: CachedDoc, source: str) -> None:
        writer.add(split, stage, source, document.tokens, size=document.bytes, language=document.language)

    seen: set[bytes] = set()
    for stage in curriculum.KNOWN:
        for document in filter(is_held_out, cache.read(stage)):
            if document.key in seen:
                report.duplicates += 1
                continue
            seen.add(document.key)
            add("validation", stage, document, document.source)
            report.validation_tokens += document.size
    replayed = 0
    with cache.reader() as read:
        for stage, origin, start, is_replay in _training_documents(cache, options, is_held_out):
            document = read(origin, start)
            add("train", stage, document, f"{REPLAY}/{document.source}" if is_replay else document.source)
            report.train_tokens += document.size
            replayed += document.size if is_replay else 0
    if not report.train_tokens:
        raise DataError("every document is held out for validation, so none remains for training", "--validation 0")
    report.replay_share = replayed / report.train_tokens


def _training_documents(
    cache: TokenCache, options: PrepareOptions, is_held_out: Callable[[CachedLocation], bool]
) -> Iterator[_Planned]:
    """The training documents in the order of ``options``."""

    def train(stage: str) -> Iterator[CachedLocation]:
        return (each for each in cache.locations(stage) if not is_held_out(each))

    available = {stage: tally.train_tokens for stage, tally in cache.tallies.items()}
    replay_tokens = available.pop(REPLAY, 0)
    ratio = curriculum.replay_ratio(options.replay_share, sum(available.values()), replay_tokens)
    stages = ((stage, train(stage)) for stage in STAGES)
    ordered = curriculum.training_order(stages, train(REPLAY), ratio, lambda each: each.size)
    if options.order == "shuffled":
        return _shuffled(ordered, options.seed)
    return ((stage, each.stage, each.start, is_replay) for stage, each, is_replay in ordered)


def _shuffled(ordered: Iterable[tuple[str, CachedLocation, bool]], seed: int) -> Iterator[_Planned]:
    """The same documents, shuffled by ``seed``; takes 18 bytes of memory each."""
    import numpy as np

    stages, replays, starts, ranks = bytearray(), bytearray(), array("Q"), array("Q")
    for _, location, is_replay in ordered:
        stages.append(curriculum.KNOWN.index(location.stage))
        replays.append(is_replay)
        starts.append(location.start)
        ranks.append(curriculum.shuffle_rank(location.key, seed))
    for index in np.argsort(np.frombuffer(ranks, np.uint64), kind="stable"):
        yield curriculum.SHUFFLED, curriculum.KNOWN[stages[index]], starts[index], bool(replays[index])


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
