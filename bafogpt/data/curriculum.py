"""The order in which a model meets its text; what is shuffled is shuffled by a seed and the text itself.

Stages come one after another, from single words to whole articles, and within a stage documents keep the order of
their files and lines; or, where that is wanted, all documents are shuffled (``docs/experiments/001-curriculum.md``).
English **replay** is mixed in evenly against forgetting (Ibrahim et al. 2024, arXiv:2403.08763). What is held out for
validation is decided by a document's own text, so it does not change when files are moved, renamed or added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from bafogpt.core import digest
from bafogpt.core.errors import DataError, did_you_mean

STAGES = ("dictionary", "translation", "transcription", "document", "news", "poem", "web", "wikipedia")
"""In the order of training."""
REPLAY = "replay"
"""The stage name of English text; it is mixed into the others."""
KNOWN = (*STAGES, REPLAY)
SHUFFLED = "shuffled"
"""The name of the one stage that shuffled text is trained on in."""

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
    """What makes two documents the same: 16 bytes of the hash of their text, white space around it left out."""
    hasher = digest.hasher("blake3")
    hasher.update(text.strip().encode())
    return bytes.fromhex(hasher.hexdigest())[:KEY_BYTES]


def held_out(document: bytes, fraction: float) -> bool:
    """Whether the document with that key belongs to validation, where ``fraction`` of all documents do."""
    return int.from_bytes(document[:8], "big") < fraction * 2.0**64


def shuffle_rank(document: bytes, seed: int) -> int:
    """Where among 2^64 places the document with that key comes when all are shuffled by ``seed``."""
    hasher = digest.hasher("blake3")
    hasher.update(seed.to_bytes(8, "big") + document)
    return int(hasher.hexdigest()[:16], 16)


def training_order(
    stages: Iterable[tuple[str, Iterable[T]]], replay: Iterable[T], ratio: float, size: Callable[[T], int]
) -> Iterator[tuple[str, T, bool]]:
    """The training stream: (stage it is met in, document, whether it is replay).

    ``ratio`` is the replay tokens wanted for each other token, and ``size`` gives a document's tokens. A replay
    document comes as soon as the stream is nearer to the ratio with it than without it, so the share holds within
    every stage and not only at the end. Replay that is left over is not emitted.
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
    """Replay tokens for each other token so that ``share`` of the whole is replay.

    Where there is less replay than that, what there is is spread over the whole stream.
    """
    return min(share / (1 - share), replay_tokens / tokens) if tokens else 0.0
