"""Write a dataset: documents in, shards out, the manifest last.

Memory holds one document; the local disk one open shard of each split. Before :meth:`TokenWriter.finish` writes the
manifest, readers see the previous dataset, if there was one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core import digest, files
from bafogpt.core.errors import DataError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import (
    BLOCK_BYTES,
    ITEM_BYTES,
    MANIFEST,
    SPLITS,
    DType,
    Packing,
    Shard,
    Split,
    Stage,
    TextSource,
    TokenizerInfo,
    TokenManifest,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_BYTES = 64 << 20


class TokenWriter:
    """Writes one dataset into ``bucket``. Not reusable, not thread-safe; a ``with`` block cleans up after an error.

    ``shard_bytes`` is the size of a shard, ``block_bytes`` the unit of verification, and ``workdir`` must have room
    for one shard of each split. With ``packing`` each document comes with its answers.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        dtype: DType,
        shard_bytes: int = SHARD_BYTES,
        workdir: Path,
        block_bytes: int = BLOCK_BYTES,
        packing: Packing | None = None,
    ) -> None:
        item = ITEM_BYTES[dtype]
        if shard_bytes < item or shard_bytes % item or block_bytes < item or block_bytes % item:
            raise ValueError(f"shard_bytes and block_bytes must be multiples of {item}")
        self._bucket = bucket
        self._dtype: DType = dtype
        self._block_bytes = block_bytes
        self._packing = packing
        workdir.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".tokens-", dir=workdir))
        self._largest = 0
        self._splits = {
            name: _SplitWriter(
                self._folder / f"{name}.bin", bucket, item, shard_bytes, block_bytes, packing is not None
            )
            for name in SPLITS
        }

    def add(
        self,
        split: str,
        stage: str,
        source: str,
        tokens: NDArray[Any],
        answers: Sequence[tuple[int, int]] = (),
        *,
        size: int | None = None,
        language: str = "",
    ) -> None:
        """Append one document (1-D integers, its EOS included) to a split; it belongs to ``stage`` and ``source``.

        ``answers`` are the spans to learn, [begin, end) within the document, in order. ``size`` is the text's in bytes
        of UTF-8; a stage has a size if all its documents have one. Raises :class:`DataError` for a token that does not
        fit the dtype.
        """
        if tokens.size == 0:
            raise DataError(f"an empty document in stage {stage} of {source}", "leave empty documents out")
        largest, bits = int(tokens.max()), 8 * ITEM_BYTES[self._dtype]
        if largest >> bits or int(tokens.min()) < 0:
            raise DataError(f"token {largest} of {source} does not fit {self._dtype}", "use uint32 for this tokenizer")
        self._largest = max(self._largest, largest)
        little = tokens.astype(f"<u{bits // 8}", copy=False)
        with files.disk_full_named(self._folder):
            writer = self._splits[split]
            writer.stage(stage).add(source, len(tokens), size, language)
            writer.add(little.tobytes(), answers)

    def finish(
        self,
        *,
        tokenizer: TokenizerInfo,
        vocab_size: int,
        sources: Sequence[TextSource],
        tokenizer_file: Path | None = None,
    ) -> TokenManifest:
        """Send the open shards, then ``tokenizer/tokenizer.json``, then the manifest."""
        if self._largest >= vocab_size:
            raise DataError(f"token {self._largest} is outside a vocabulary of {vocab_size}", "check the tokenizer")
        splits = {name: writer.finish() for name, writer in self._splits.items()}
        if tokenizer_file is not None:
            self._bucket.upload("tokenizer/tokenizer.json", tokenizer_file)
        manifest = TokenManifest(
            dtype=self._dtype,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            splits=splits,
            sources=tuple(sources),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            block_bytes=self._block_bytes,
            packing=self._packing,
        )
        self._bucket.put(MANIFEST, manifest.to_json())
        self.close()
        return manifest

    def close(self) -> None:
        """Remove the temporary files."""
        for writer in self._splits.values():
            writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _OpenStage:
    """The sums of a stage so far."""

    name: str
    start_token: int
    tokens: int = 0
    documents: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    bytes: int | None = 0
    languages: set[str] = field(default_factory=set)

    def add(self, source: str, tokens: int, size: int | None, language: str) -> None:
        """Count one document."""
        self.tokens += tokens
        self.documents += 1
        self.sources[source] += tokens
        self.bytes = None if size is None or self.bytes is None else self.bytes + size
        self.languages |= {language} - {""}

    def finished(self) -> Stage:
        sources, languages = dict(sorted(self.sources.items())), tuple(sorted(self.languages))
        return Stage(self.name, self.start_token, self.tokens, self.documents, sources, self.bytes or None, languages)


class _SplitWriter:
    """One split: cuts its stream of bytes into shards, and hashes each block as it is written."""

    def __init__(
        self, path: Path, bucket: Bucket, item_bytes: int, shard_bytes: int, block_bytes: int, is_packed: bool
    ) -> None:
        self._path = path
        self._bucket = bucket
        self._item_bytes = item_bytes
        self._shard_bytes = shard_bytes
        self._block_bytes = block_bytes
        self._is_packed = is_packed
        self._file = path.open("wb")
        self._stages: list[_OpenStage] = []
        self._shards: list[Shard] = []
        self._closed = 0  # tokens in closed shards
        self._spans: list[tuple[int, int]] = []
        """Answers, as tokens of the stream; those of closed shards are removed."""
        self._written = 0  # bytes of the open shard
        self._block = digest.hasher("xxh3")
        self._blocks: list[str] = []
        self._begins = array("Q")

    def stage(self, name: str) -> _OpenStage:
        """The stage of the next document; it begins here unless it is the open one."""
        if not self._stages or self._stages[-1].name != name:
            self._stages.append(_OpenStage(name, self._tokens))
        return self._stages[-1]

    def add(self, data: bytes, answers: Sequence[tuple[int, int]]) -> None:
        """Append one document's bytes."""
        self._spans += [(self._tokens + begin, self._tokens + end) for begin, end in answers]
        self._begins.append(self._written // self._item_bytes)
        position = 0
        while position < len(data):
            left_in_block = self._block_bytes - self._written % self._block_bytes
            piece = data[position : position + min(left_in_block, self._shard_bytes - self._written)]
            position += len(piece)
            self._file.write(piece)
            self._block.update(piece)
            self._written += len(piece)
            if self._written % self._block_bytes == 0:
                self._close_block()
            if self._written == self._shard_bytes:
                self._close_shard()

    def finish(self) -> Split:
        if self._written:
            self._close_shard()
        stages = tuple(each.finished() for each in self._stages)
        return Split(self._tokens, sum(stage.documents for stage in stages), tuple(self._shards), stages)

    def close(self) -> None:
        self._file.close()

    @property
    def _tokens(self) -> int:
        """The tokens written so far."""
        return self._closed + self._written // self._item_bytes

    def _close_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
        self._block = digest.hasher("xxh3")

    def _close_shard(self) -> None:
        """Send the open shard, under a name that contains its hash, and begin the next."""
        if self._written % self._block_bytes:
            self._close_block()
        offsets, answers, blocks = _little(self._begins), self._answers(), "".join(self._blocks)
        content = digest.of_chunks((blocks.encode(), offsets, answers)).partition(":")[2][:8]
        shard = Shard(
            name=f"{self._path.stem}-{len(self._shards):05d}-{content}.bin",
            tokens=self._written // self._item_bytes,
            documents=len(self._begins),
            blocks=blocks,
            docs_digest=digest.of_bytes(offsets, "xxh3"),
            answers=len(answers) // 16,
            answers_digest=digest.of_bytes(answers, "xxh3") if self._is_packed else "",
        )
        self._file.flush()
        self._bucket.upload(shard.object, self._path)
        self._bucket.put(shard.docs_object, offsets)
        if self._is_packed:
            self._bucket.put(shard.answers_object, answers)
        self._shards.append(shard)
        self._closed += shard.tokens
        self._file.seek(0)
        self._file.truncate()
        self._written = 0
        self._blocks = []
        self._begins = array("Q")

    def _answers(self) -> bytes:
        """The answers in the open shard, relative to its start. An answer that continues in the next shard is kept."""
        first, end = self._closed, self._tokens
        inside = array("Q")
        for begin, stop in self._spans:
            if begin < end:
                inside.extend((max(begin, first) - first, min(stop, end) - first))
        self._spans = [span for span in self._spans if span[1] > end]
        return _little(inside)


def _little(numbers: array[int]) -> bytes:
    """uint64 numbers as little-endian bytes. Call it once: on a big-endian machine it swaps in place."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
