"""The token manifest: all that is known about a dataset, in ``manifest.json``, written last.

::

    manifest.json                  this
    shards/train-00000-1f2e3d4c.bin    flat little-endian tokens; the name ends in the content's hash, so a dataset
                                       that is written again never changes a file that somebody reads
    shards/train-00000-1f2e3d4c.docs   uint64 offsets (tokens from the shard's start) at which documents begin
    shards/train-00000-1f2e3d4c.answers    uint64 pairs: from which token to which a model is to learn; of packed
                                       datasets only
    tokenizer/tokenizer.json

A manifest may list 60,000 shards: what there is one of per shard is kept small, and per block there is no object,
only 32 characters of the shard's ``blocks``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

from bafogpt.core import digest, files
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.errors import retry_on_corruption

FORMAT = "bafogpt.tokens/1"
MANIFEST = "manifest.json"
BLOCK_BYTES = 8 << 20
"""The unit of verification: each block of a shard has a hash of its own."""
HASH_CHARS = 32  # xxh3-128 as hex
SPLITS = ("train", "validation")
ITEM_BYTES = {"uint16": 2, "uint32": 4}

DType = Literal["uint16", "uint32"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One object of tokens. ``documents`` begin in it; ``blocks`` joins the hashes of its blocks."""

    name: str
    tokens: int
    documents: int
    blocks: str
    docs_digest: str
    answers: int = 0
    """Spans to be learned, those cut at the shard's borders counted on both sides; of packed datasets only."""
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
        """Path of the spans to be learned within the dataset."""
        return f"shards/{self.name.removesuffix('.bin')}.answers"


@dataclass(frozen=True)
class Stage:
    """A span of a split's stream: ``tokens`` tokens from ``start_token``, and how many of them each source gave."""

    name: str
    start_token: int
    tokens: int
    documents: int
    sources: dict[str, int]
    bytes: int | None = None
    """Of its documents' text in UTF-8; None in a dataset that was made before this was counted."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes as its documents name them, sorted; ``eng-zul`` is text that holds both. Empty where none does."""


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
    """Which tokenizer made the tokens; ``digest`` is that of its ``tokenizer.json``."""

    name: str
    digest: str
    eos_id: int
    bos_id: int | None
    add_bos: bool = False
    """Whether documents begin with ``bos_id``; then every sample is to begin with it, too."""


@dataclass(frozen=True)
class TextSource:
    """One text that went in."""

    path: str
    digest: str
    documents: int


@dataclass(frozen=True)
class Packing:
    """How conversations were laid into samples: no document crosses one, and only the answers are to be learned."""

    sequence_length: int
    """Tokens a sample, T: samples of any other length would cut documents."""
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
    """When, as ISO 8601 in UTC."""
    block_bytes: int = BLOCK_BYTES
    packing: Packing | None = None
    """Of instructions; None for running text, all of which is learned."""

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the tokens, their order and their origin; the same data made again have the same."""
        content = self._plain()
        del content["created"]
        return digest.of_bytes(_canonical(content))

    def to_json(self) -> bytes:
        """What :func:`from_json` reads, its own digest included."""
        return _canonical({**self._plain(), "digest": self.digest})

    def _plain(self) -> dict[str, Any]:
        plain = {"format": FORMAT, "byte_order": "little", **dataclasses.asdict(self)}
        if self.packing is None:  # what was written before there was packing keeps its digest
            del plain["packing"]
            for split in plain["splits"].values():
                for shard in split["shards"]:
                    del shard["answers"], shard["answers_digest"]
        if not self.tokenizer.add_bos:
            del plain["tokenizer"]["add_bos"]
        for split in plain["splits"].values():
            for stage in split["stages"]:  # what older datasets do not have is left out, so theirs keep their digest
                for key in [key for key in ("bytes", "languages") if not stage[key]]:
                    del stage[key]
        return plain


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
    """Read a manifest; ``where`` names it in errors.

    Raises :class:`CorruptError` for what is not a manifest, or not of this version, or contradicts itself.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise _wrong(where, "not JSON") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        hint = "pip install --upgrade bafogpt" if str(found).startswith("bafogpt.tokens/") else _HINT
        raise CorruptError(f"{where}: format {found!r}, this version reads {FORMAT!r}", hint)
    read = _Reader(raw, where)
    if read.take("byte_order", str) != "little":
        raise _wrong(where, "byte_order is not 'little'")
    dtype = read.take("dtype", str)
    if dtype not in ITEM_BYTES:
        raise _wrong(where, f"dtype is {dtype!r}, not one of {', '.join(ITEM_BYTES)}")
    tokenizer = read.below("tokenizer")
    splits = read.take("splits", dict)
    if set(splits) != set(SPLITS):
        raise _wrong(where, f"splits are {sorted(splits)}, not {sorted(SPLITS)}")
    manifest = TokenManifest(
        dtype="uint16" if dtype == "uint16" else "uint32",
        vocab_size=read.take("vocab_size", int),
        tokenizer=TokenizerInfo(
            name=tokenizer.take("name", str),
            digest=tokenizer.take("digest", str),
            eos_id=tokenizer.take("eos_id", int),
            bos_id=None if tokenizer.raw.get("bos_id") is None else tokenizer.take("bos_id", int),
            add_bos=tokenizer.take("add_bos", bool) if "add_bos" in tokenizer.raw else False,
        ),
        splits={name: _split(_Reader(splits[name], f"{where} {name}"), "packing" in raw) for name in SPLITS},
        sources=tuple(
            TextSource(each.take("path", str), each.take("digest", str), each.take("documents", int))
            for each in read.each("sources")
        ),
        created=read.take("created", str),
        block_bytes=read.take("block_bytes", int),
        packing=_packing(read.below("packing")) if "packing" in raw else None,
    )
    _check(manifest, where)
    if raw.get("digest") != manifest.digest:
        raise _wrong(where, "not what was written")
    return manifest


_HINT = "bafogpt data prepare … --overwrite writes the dataset anew"


def _canonical(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _wrong(where: str, what: str) -> CorruptError:
    return CorruptError(f"{where}: {what}", _HINT)


class _Reader:
    """Typed access to one JSON object."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise _wrong(where, "not an object")
        self.raw = raw
        self.where = where

    def take(self, key: str, kind: type[T]) -> T:
        value = self.raw.get(key)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _wrong(self.where, f"'{key}' is {str(value)[:40]!r}, expected {kind.__name__}")
        return value

    def below(self, key: str) -> _Reader:
        return _Reader(self.raw.get(key), f"{self.where} {key}")

    def each(self, key: str) -> list[_Reader]:
        return [_Reader(item, f"{self.where} {key}[{i}]") for i, item in enumerate(self.take(key, list))]


def _packing(read: _Reader) -> Packing:
    return Packing(read.take("sequence_length", int), read.take("style", str), read.take("template", str))


def _split(read: _Reader, is_packed: bool) -> Split:
    shards = tuple(
        Shard(
            name=each.take("name", str),
            tokens=each.take("tokens", int),
            documents=each.take("documents", int),
            blocks=each.take("blocks", str),
            docs_digest=each.take("docs_digest", str),
            answers=each.take("answers", int) if is_packed else 0,
            answers_digest=each.take("answers_digest", str) if is_packed else "",
        )
        for each in read.each("shards")
    )
    stages = []
    for each in read.each("stages"):
        numbers = each.below("sources")
        stages.append(
            Stage(
                name=each.take("name", str),
                start_token=each.take("start_token", int),
                tokens=each.take("tokens", int),
                documents=each.take("documents", int),
                sources={str(source): numbers.take(source, int) for source in numbers.raw},
                bytes=each.take("bytes", int) if "bytes" in each.raw else None,
                languages=tuple(map(str, each.take("languages", list))) if "languages" in each.raw else (),
            )
        )
    return Split(read.take("tokens", int), read.take("documents", int), shards, tuple(stages))


def _check(manifest: TokenManifest, where: str) -> None:
    """Numbers that must agree do; names are names."""
    item = ITEM_BYTES[manifest.dtype]
    block = manifest.block_bytes
    if block <= 0 or block % item:
        raise _wrong(where, f"block_bytes {block} is not a multiple of {item}")
    if manifest.vocab_size > 1 << (8 * item) or manifest.tokenizer.eos_id >= manifest.vocab_size:
        raise _wrong(where, f"vocab_size {manifest.vocab_size} does not fit {manifest.dtype} and the EOS token")
    if not (manifest.tokenizer.bos_id or 0) < manifest.vocab_size:
        raise _wrong(where, f"vocab_size {manifest.vocab_size} does not have the BOS token")
    if manifest.tokenizer.add_bos and manifest.tokenizer.bos_id is None:
        raise _wrong(where, "add_bos without a bos_id")
    if manifest.packing is not None and manifest.packing.sequence_length < 2:
        raise _wrong(where, f"packing has samples of {manifest.packing.sequence_length} tokens")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if len(files.safe_relative(shard.name).parts) != 1 or not shard.name.endswith(".bin"):
                raise _wrong(where, f"'{shard.name}' is not the name of a shard")
            if not shard.tokens or len(shard.blocks) != HASH_CHARS * -(-shard.tokens * item // block):
                raise _wrong(where, f"shard {shard.name}: the number of blocks does not fit {shard.tokens} tokens")
        for what in ("tokens", "documents"):
            total = getattr(split, what)
            if (
                not total
                == sum(getattr(each, what) for each in split.shards)
                == sum(getattr(each, what) for each in split.stages)
            ):
                raise _wrong(where, f"split {name}: {what} of the shards, of the stages and in all do not agree")
        starts = accumulate((stage.tokens for stage in split.stages), initial=0)
        for stage, start in zip(split.stages, starts, strict=False):
            if stage.start_token != start or sum(stage.sources.values()) != stage.tokens:
                raise _wrong(
                    where, f"split {name}: stage {stage.name} does not follow on the one before, or its sum is off"
                )
