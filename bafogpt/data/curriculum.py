"""The order of training text, and the choice of validation documents.

Stages follow one another, from single words to whole articles; within a stage documents keep the order of their files
and lines. Alternatively all documents are shuffled (``docs/experiments/001-curriculum.md``). English **replay** is
mixed in evenly against forgetting (Ibrahim et al. 2024, arXiv:2403.08763). Validation documents are chosen by a hash of
their text, so the choice does not change when files are moved, renamed or added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from bafogpt.core import digest
from bafogpt.core.errors import DataError, did_you_mean

STAGES = ("dictionary", "translation", "transcription", "document", "news", "poem", "web", "wikipedia")
"""In the order of training."""
REPLAY = "replay"
"""Stage of English text, which is mixed into the others."""
KNOWN = (*STAGES, REPLAY)
SHUFFLED = "shuffled"
"""The single stage of a shuffled dataset."""

KEY_BYTES = 16
SMALLEST_HELD_OUT = 20
"""A stage with this many documents has at least one in the validation split."""

T = TypeVar("T")


def require_stage(name: str, where: str) -> None:
    """Raise :class:`DataError` unless ``name`` is a known stage."""
    if name not in KNOWN:
        guess = did_you_mean(name, KNOWN)
        raise DataError(f"{where}: unknown stage '{name}'{guess}", f"use one of {', '.join(KNOWN)}")


def document_key(text: str) -> bytes:
    """Identifies a document: 16 bytes of the hash of its text without surrounding white space."""
    return _hash(text.strip().encode())[:KEY_BYTES]


def held_out(document: bytes, fraction: float) -> bool:
    """Whether the document with that key is one of the ``fraction`` for validation."""
    return int.from_bytes(document[:8], "big") < fraction * 2.0**64


def shuffle_rank(document: bytes, seed: int) -> int:
    """The sort key in [0, 2^64) of the document with that key when all are shuffled by ``seed``."""
    return int.from_bytes(_hash(seed.to_bytes(8, "big") + document)[:8], "big")


def _hash(data: bytes) -> bytes:
    return bytes.fromhex(digest.of_bytes(data).partition(":")[2])


def training_order(
    stages: Iterable[tuple[str, Iterable[T]]], replay: Iterable[T], ratio: float, size: Callable[[T], int]
) -> Iterator[tuple[str, T, bool]]:
    """The training stream: (stage it is trained in, document, whether it is replay).

    ``ratio`` is the number of replay tokens per other token, and ``size`` gives a document's tokens. A replay document
    is emitted as soon as that brings the stream nearer to the ratio, so the share holds within every stage. Replay that
    is left over is not emitted.
    """
    waiting = iter(replay)
    coming = next(waiting, None)
    passed = mixed = 0
    for stage, documents in stages:
        for document in documents:
            yield stage, document, False
            passed += size(document)
            while coming is not None and mixed + size(coming) / 2 <= passed * ratio:
                yield stage, coming, True
                mixed += size(coming)
                coming = next(waiting, None)


def replay_ratio(share: float, tokens: int, replay_tokens: int) -> float:
    """Replay tokens per other token for a ``share`` of replay; less where there is not enough replay text."""
    return min(share / (1 - share), replay_tokens / tokens) if tokens else 0.0
