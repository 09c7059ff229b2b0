"""The manifest of a dataset of tokens, ``manifest.json``, written last.

::

    manifest.json                  this
    shards/train-00000-1f2e3d4c.bin    flat little-endian tokens; the name ends in the content's hash, so writing a
                                       dataset again never changes a file that is being read
    shards/train-00000-1f2e3d4c.docs   uint64 offsets (tokens from the shard's start) at which documents begin
    shards/train-00000-1f2e3d4c.answers    uint64 pairs [begin, end): the tokens to learn; of packed datasets only
    tokenizer/tokenizer.json

A manifest may list 60,000 shards, so a shard's entry is small: its ``blocks`` is one string with 32 characters per
block.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from bafogpt.core import files
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage import json_manifest
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.errors import retry_on_corruption

FORMAT = "bafogpt.tokens/1"
MANIFEST = "manifest.json"
BLOCK_BYTES = 8 << 20
"""The unit of verification: each block of a shard has a hash of its own."""
HASH_CHARS = 32  # xxh3-128 as hex
SPLITS = ("train", "validation")
ITEM_BYTES = {"uint16": 2, "uint32": 4}
_UNDIGESTED = ("created",)
_HINT = "bafogpt data prepare … --overwrite rewrites the dataset"

DType = Literal["uint16", "uint32"]


@dataclass(frozen=True, slots=True)
class Shard:
    """One object of tokens. ``documents`` begin in it; ``blocks`` joins the hashes of its blocks."""

    name: str
    tokens: int
    documents: int
    blocks: str
    docs_digest: str
    answers: int = 0
    """Spans to learn, those cut at the shard's borders counted on both sides; of packed datasets only."""
    answers_digest: str = ""

    @property
    def object(self) -> str:
        """Path of the tokens within the dataset."""
        return f"shards/{self.name}"

    @property
    def docs_object(self) -> str:
        """Path of the document offsets within the dataset."""
        return f"shards/{self.name.removesuffix('.bin')}.docs"

    @property
    def answers_object(self) -> str:
        """Path of the spans to learn within the dataset."""
        return f"shards/{self.name.removesuffix('.bin')}.answers"


@dataclass(frozen=True)
class Stage:
    """A span of a split's stream: ``tokens`` tokens from ``start_token``, with each source's share of them."""

    name: str
    start_token: int
    tokens: int
    documents: int
    sources: dict[str, int]
    bytes: int | None = None
    """Size of its documents' text in UTF-8; None where some document's size is unknown."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes of its documents, sorted; ``eng-zul`` is text in both. Empty where no document names one."""


@dataclass(frozen=True)
class Split:
    """One stream of tokens: its shards and its stages, both in order and without gaps."""

    tokens: int
    documents: int
    shards: tuple[Shard, ...]
    stages: tuple[Stage, ...]

    @functools.cached_property
    def starts(self) -> array[int]:
        """The first token of each shard, and the end of the last."""
        return array("q", accumulate((shard.tokens for shard in self.shards), initial=0))

    def locate(self, token: int) -> tuple[int, int]:
        """(index of the shard, offset within it) of a token of the stream."""
        index = bisect_right(self.starts, token) - 1
        return index, token - self.starts[index]


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer of a dataset; ``digest`` is that of its ``tokenizer.json``."""

    name: str
    digest: str
    eos_id: int
    bos_id: int | None
    add_bos: bool = False
    """Whether documents begin with ``bos_id``; then every sample begins with it, too."""


@dataclass(frozen=True)
class TextSource:
    """One input text of a dataset."""

    path: str
    digest: str
    documents: int


@dataclass(frozen=True)
class Packing:
    """How conversations were packed into samples: no document crosses a sample, and only answers are learned."""

    sequence_length: int
    """Tokens per sample, T: samples of another length would cut documents."""
    style: str
    """Name of the prompt style."""
    template: str
    """The prompt style itself, as Jinja."""


@dataclass(frozen=True, kw_only=True)
class TokenManifest:
    """A dataset."""

    dtype: DType
    vocab_size: int
    tokenizer: TokenizerInfo
    splits: dict[str, Split]
    sources: tuple[TextSource, ...]
    created: str
    """ISO 8601, UTC."""
    block_bytes: int = BLOCK_BYTES
    packing: Packing | None = None
    """Of instruction data; None for running text, all of which is learned."""

    byte_order: Literal["little"] = "little"

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the tokens, their order and their origin: the same data prepared again have the same digest."""
        return json_manifest.digest_of({"format": FORMAT, **json_manifest.to_plain(self)}, _UNDIGESTED)

    def to_json(self) -> bytes:
        return json_manifest.encode(self, FORMAT, undigested=_UNDIGESTED)


def load(bucket: Bucket) -> TokenManifest:
    """The manifest of the dataset in ``bucket``. Raises :class:`NotFoundError` when there is none."""
    where = f"{bucket.url}/{MANIFEST}"
    try:
        return retry_on_corruption(lambda: from_json(bucket.get(MANIFEST), where))
    except NotFoundError as error:
        if not error.message.startswith(where):  # the bucket itself is missing
            raise
        raise NotFoundError(f"no dataset at {bucket.url}", "bafogpt data prepare --help") from None


def from_json(data: bytes, where: str) -> TokenManifest:
    """Parse a manifest; ``where`` names it in errors.

    Raises :class:`CorruptError` for another format, and for inconsistent content.
    """
    manifest = json_manifest.parse(TokenManifest, data, where, form=FORMAT, hint=_HINT, undigested=_UNDIGESTED)
    try:
        _check_header(manifest)
        for name in SPLITS:
            _check_split(name, manifest.splits[name], ITEM_BYTES[manifest.dtype], manifest.block_bytes)
    except ValueError as error:
        raise CorruptError(f"{where}: {str(error)[: json_manifest.MAX_MESSAGE]}", _HINT) from None
    return manifest


def _check_header(manifest: TokenManifest) -> None:
    """Raise :class:`ValueError` where the numbers of a manifest do not fit together."""
    item, block, tokenizer = ITEM_BYTES[manifest.dtype], manifest.block_bytes, manifest.tokenizer
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"splits are {sorted(manifest.splits)}, not {sorted(SPLITS)}")
    if block <= 0 or block % item:
        raise ValueError(f"block_bytes {block} is not a multiple of {item}")
    if manifest.vocab_size > 1 << (8 * item) or not 0 <= tokenizer.eos_id < manifest.vocab_size:
        raise ValueError(f"vocab_size {manifest.vocab_size} does not fit {manifest.dtype} and the EOS token")
    if not 0 <= (tokenizer.bos_id or 0) < manifest.vocab_size:
        raise ValueError(f"vocab_size {manifest.vocab_size} does not have the BOS token")
    if tokenizer.add_bos and tokenizer.bos_id is None:
        raise ValueError("add_bos without a bos_id")
    if manifest.packing is not None and manifest.packing.sequence_length < 2:
        raise ValueError(f"packing has samples of {manifest.packing.sequence_length} tokens")


def _check_split(name: str, split: Split, item: int, block: int) -> None:
    """Raise :class:`ValueError` where shards, stages and sums of a split do not agree."""
    for shard in split.shards:
        if len(files.safe_relative(shard.name).parts) != 1 or not shard.name.endswith(".bin"):
            raise ValueError(f"'{shard.name}' is not the name of a shard")
        if shard.tokens < 1 or len(shard.blocks) != HASH_CHARS * -(-shard.tokens * item // block):
            raise ValueError(f"shard {shard.name}: the number of blocks does not fit {shard.tokens} tokens")
        if shard.documents < 0 or shard.answers < 0:
            raise ValueError(f"shard {shard.name}: a number is negative")
    for what in ("tokens", "documents"):
        sums = {sum(getattr(each, what) for each in parts) for parts in (split.shards, split.stages)}
        if sums != {getattr(split, what)}:
            raise ValueError(f"split {name}: {what} of the shards, of the stages and in all do not agree")
    start = 0
    for stage in split.stages:
        if min(stage.documents, stage.tokens, *stage.sources.values()) < 0:
            raise ValueError(f"split {name}: stage {stage.name} has a negative number")
        if stage.start_token != start or sum(stage.sources.values()) != stage.tokens:
            raise ValueError(f"split {name}: stage {stage.name} does not follow the one before, or its sum is off")
        start += stage.tokens
