"""Writes ``tokenizer.model``: an extended tokenizer in SentencePiece's format, which llama.cpp's converter prefers.

SentencePiece merges the neighbours that spell the piece with the highest score; ``tokenizers`` merges the pair with the
lowest rank. So a piece's score is minus the lowest rank of its merges, and new pieces score below all of the base's, in
the order they were learned. This is exact for Gemma, whose merges contain every split of a piece. For other bases and
unusual text it is not proven, so the file is written only if both libraries give the same ids for a sample of the
corpus. One known difference: SentencePiece reads a literal ``▁`` (U+2581) beside a space or another ``▁`` as a space,
``tokenizers`` as an added token.

The file is one protobuf message (``sentencepiece_model.proto`` in https://github.com/google/sentencepiece), encoded by
hand because the package's ``sentencepiece_model_pb2`` needs a newer protobuf than other dependencies allow. Appending
bytes to a message appends to its lists and replaces its numbers, so a base's own file is extended without decoding it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core.errors import DataError
from bafogpt.data.tokenizer import BEGIN_NAMES, END_NAMES
from bafogpt.data.vocabulary.files import HINT, Base, LearnedPiece, padding_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MODEL = "tokenizer.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""``ModelProto.SentencePiece.Type``."""
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
BATCH = 8192
"""Texts that are tokenized at a time."""
UNUSUAL = (
    *(" ", "  ", "   x", "x   ", "\t", "\t\t\tx", "\n", "\n\n\n", "a\r\nb", " \t \n ", "\u00a0x", "\u200b", "\ufeffx"),
    *("😀", "👩🏽‍🚀🇿🇦", "e\u0301 é ﬁ Ｆ", "漢字かな 한국어", "кот عربي ሰላም ⴰ", "\x00\x01\x7f", "\U0010ffff"),
    *("0123456789 3,141.59 2026-11-28", "aaaaaaa hahahaha zzzzz", "!!!!! ...... ------ =====", "isi-Zulu's U.S.A."),
    *("def f(x: int) -> int:\n    return x**2  # ok\n", '{"a": [1, 2], "b": null}', "<b>x</b> &amp; https://a.b/c?d=e"),
    *("<bos><eos><unk><pad><mask>", "<start_of_turn>user\nx<end_of_turn>\n", "<0x09><0x41>", "<unused9>[@BOS@]"),
)
"""Text that a corpus may lack: white space, emoji, scripts, digits, repetition, code, spelled-out special tokens."""


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """Comparison of ``tokenizer.model`` with ``tokenizer.json``."""

    texts: int = 0
    """Texts that were tokenized with both."""
    tokens: int = 0
    """Their ids in ``tokenizer.json``."""
    refused: str = ""
    """Why ``tokenizer.model`` was not written; empty if it was."""


def write(
    folder: Path, base: Base, learned: Sequence[LearnedPiece], padding: int, engine: FastTokenizer, texts: Iterable[str]
) -> ModelCheck:
    """Write ``tokenizer.model`` into ``folder`` if it gives the ids of ``engine`` for all ``texts``.

    ``engine`` is the new ``tokenizer.json``, with special tokens in a text read as text. If the file is not written,
    :attr:`ModelCheck.refused` has the reason.
    """
    try:
        content = extended(base, learned, padding)
        check = compare(content, engine, texts)
    except DataError as error:
        return ModelCheck(refused=error.message)
    if not check.refused:
        (folder / MODEL).write_bytes(content)
    return check


def extended(base: Base, learned: Sequence[LearnedPiece], padding: int) -> bytes:
    """The base's SentencePiece model, its own or one made from its ``tokenizer.json``, with the new pieces appended.

    Raises :class:`DataError` where the base's ``tokenizer.model`` is unreadable or of another tokenizer, and where
    SentencePiece cannot express its ``tokenizer.json``.
    """
    own = base.file.parent / MODEL
    content, lowest = _read_own(own, base) if own.is_file() else _from_json(base)
    size = base.size + len(learned) + padding
    return b"".join(
        (
            content,
            *(_piece(piece.text, lowest - 1 - index, NORMAL) for index, piece in enumerate(learned)),
            *(_piece(name, 0, UNUSED) for name in padding_names(base, padding)),
            _field(2, _number(4, size)),
        )
    )


def compare(content: bytes, engine: FastTokenizer, texts: Iterable[str]) -> ModelCheck:
    """Tokenize ``texts`` with both libraries. Raises :class:`DataError` where SentencePiece cannot read ``content``."""
    model = open_model(content, "the new tokenizer.model")
    if model.get_piece_size() != engine.get_vocab_size(with_added_tokens=True):
        return ModelCheck(refused="it has another number of pieces than tokenizer.json")
    compared = tokens = differing = 0
    example = ""
    waiting = iter(texts)
    while batch := list(islice(waiting, BATCH)):
        wanted = [each.ids for each in engine.encode_batch_fast(batch, add_special_tokens=False)]
        for text, ids, found in zip(batch, wanted, model.encode(batch), strict=True):
            compared += 1
            tokens += len(ids)
            if ids != found:
                differing += 1
                example = example or text
    refused = f"{differing:,} of {compared:,} texts have other ids than in tokenizer.json, such as {example[:60]!r}"
    return ModelCheck(texts=compared, tokens=tokens, refused=refused if differing else "")


def open_model(content: bytes, name: str) -> Any:
    """A ``SentencePieceProcessor``. Raises :class:`DataError` where the package is missing or cannot read it."""
    try:
        import sentencepiece
    except ImportError:
        raise DataError(f"{name}: the sentencepiece package is not installed", "pip install sentencepiece") from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"{name}: not a SentencePiece model ({error})", f"head -c 100 {name}") from None


def _read_own(file: Path, base: Base) -> tuple[bytes, float]:
    """The base's ``tokenizer.model`` with an entry for every id of its ``tokenizer.json``, and its lowest score."""
    content = file.read_bytes()
    model = open_model(content, str(file))
    size, added = int(model.get_piece_size()), _added(base)
    for number in range(max(size, base.size)):
        if number in added or (number < size and model.is_byte(number)):
            continue  # some releases name special tokens anew in tokenizer.json
        if number >= min(size, base.size) or model.id_to_piece(number) != base.pieces[number]:
            raise DataError(f"{file} is of another tokenizer (id {number})", "take both files from one model")
    missing = b"".join(_entry(base, number, added, 0) for number in range(size, base.size))
    return content + missing, min(model.get_score(number) for number in range(size))


def _from_json(base: Base) -> tuple[bytes, float]:
    """A SentencePiece model of the base's ``tokenizer.json``, and its lowest score."""
    model, added = base.content["model"], _added(base)
    vocab, unknown = model["vocab"], model.get("unk_token")
    missing = [name for name in BYTES if name not in vocab]
    if not model.get("byte_fallback") or missing not in ([], ["<0x09>"]) or unknown not in vocab:
        raise DataError(f"{base.file} has no byte fallback or no unknown token, which SentencePiece needs", HINT)
    if any(each.get(flag) for each in added.values() for flag in ("single_word", "lstrip", "rstrip")):
        raise DataError(
            f"{base.file} has added tokens that strip or match whole words, which SentencePiece has not", HINT
        )
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault(pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair), rank)
    lowest = -len(model["merges"])
    pieces = (_entry(base, number, added, -ranks.get(base.pieces[number], -lowest)) for number in range(base.size))
    return b"".join((*pieces, _field(2, b"".join(_trainer(base))), _field(3, _NORMALIZER))), lowest


def _added(base: Base) -> dict[int, dict[str, Any]]:
    return {int(each["id"]): each for each in base.content.get("added_tokens") or ()}


def _entry(base: Base, number: int, added: dict[int, dict[str, Any]], score: float) -> bytes:
    """The piece of one id of the base. Only normal pieces have a score."""
    text = base.pieces[number]
    if text in BYTES or (text == "\t" and "<0x09>" not in base.content["model"]["vocab"]):
        return _piece("<0x09>" if text == "\t" else text, 0, BYTE)  # Gemma-2's tokenizer.json has the tab in its place
    if text == base.content["model"].get("unk_token"):
        return _piece(text, 0, UNKNOWN)
    if number in added:
        return _piece(text, 0, CONTROL if added[number].get("special") else USER_DEFINED)
    return _piece(text, score, NORMAL) if text else _piece(f"<no_piece_{number}>", 0, UNUSED)


def _trainer(base: Base) -> Iterator[bytes]:
    """``TrainerSpec``: BPE with byte fallback, and how special tokens are spelled."""
    yield _number(3, 2) + _number(35, 1)
    names = ((45, (base.content["model"]["unk_token"],)), (46, BEGIN_NAMES), (47, END_NAMES), (48, ("<pad>",)))
    for field, known in names:
        name = next((each for each in known if each in base.pieces), None)
        if name is not None:
            yield _field(field, name.encode()) + _number(field - 5, base.pieces.index(name))


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, _field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, kind))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes((*parts, value))


_NORMALIZER = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
"""``NormalizerSpec`` as Gemma's: no dummy prefix, no white space removed, the space escaped as ``▁``."""
