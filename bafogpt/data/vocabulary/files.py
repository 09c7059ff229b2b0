"""A ``tokenizer.json`` to continue, the one that continues it, and where each of its pieces comes from.

What is read is what Gemma, Mistral and Llama 2 have: BPE whose text has ``▁`` for the space and bytes to fall back on.
What is written is the base's file with entries added to ``vocab`` and ``merges``; everything before them stays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core import digest
from bafogpt.core.errors import DataError, NotFoundError
from bafogpt.data.tokenizer import BEGIN_NAMES, END_NAMES
from bafogpt.data.vocabulary.word_counts import SPACE, is_letters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
LINEAGE = "tokenizer.lineage.json"
LINEAGE_SCHEMA = "bafogpt.tokenizer.lineage/1"
COMPANION_FILES = ("special_tokens_map.json", "chat_template.jinja")
"""What else belongs to a tokenizer and is copied along."""
PADDING = "<padding_{}>"
HINT = "--base FOLDER of a Gemma, Mistral or Llama 2 checkpoint"


@dataclass(frozen=True)
class LearnedPiece:
    """One learned piece."""

    id: int
    text: str
    merge: tuple[int, int]
    """The two tokens, of the base or learned before, that it is made of."""
    constituents: tuple[int, ...]
    """The base's tokens for the same text."""
    count: int
    """How often the merge applied in the corpus when it was learned."""


@dataclass(frozen=True)
class Base:
    """A tokenizer that can be continued."""

    file: Path
    digest: str
    """``blake3:`` of the ``tokenizer.json``."""
    content: dict[str, Any]
    engine: FastTokenizer
    """Cuts raw text as the base does, special tokens spelled in it being text, and nothing added."""
    pieces: Sequence[str]
    """By id; empty where an id has no piece."""
    letters: Sequence[bool]
    """By id: whether the piece is letters, so that it may be part of a new one."""

    @property
    def size(self) -> int:
        """The first id that is free."""
        return len(self.pieces)


def load(name: str) -> Base:
    """A ``tokenizer.json``, or the folder that holds one.

    Raises :class:`NotFoundError` where there is none and :class:`DataError` for what cannot be continued: no BPE,
    no merges, or another way with spaces.
    """
    path = Path(name)
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{path} has no {TOKENIZER}" if path.is_dir() else f"no tokenizer at {path}", HINT)
    raw = file.read_bytes()
    try:
        content = json.loads(raw)
        model = content["model"]
        reason = _unfit(content, model)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a {TOKENIZER} ({_first_line(error)})", f"head -c 200 {file}") from None
    if reason:  # before the library reads it: some of these make it panic
        raise DataError(f"{file}: {reason}", HINT)
    from tokenizers import Tokenizer as FastTokenizer

    try:
        engine = FastTokenizer.from_buffer(raw)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file}: not a {TOKENIZER} ({_first_line(error)})", f"head -c 200 {file}") from None
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = True
    added = {each["id"]: each["content"] for each in content.get("added_tokens") or ()}
    by_id = {number: text for text, number in model["vocab"].items()} | added
    pieces = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    letters = [bool(text) and number not in added and is_letters(text) for number, text in enumerate(pieces)]
    return Base(file, digest.of_bytes(raw), content, engine, pieces, letters)


def _unfit(content: dict[str, Any], model: dict[str, Any]) -> str:
    """Why this tokenizer cannot be continued, or nothing."""
    if model.get("type") != "BPE":
        return f"a {model.get('type') or 'nameless'} model; only BPE can be continued"
    if not model.get("merges"):
        return "BPE without merges, so there is nothing to continue"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        return "its pieces carry a prefix, a suffix or dropout, which is not supported"
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if {"type": "Replace", "pattern": {"String": " "}, "content": SPACE} not in steps:
        return f"its text does not have '{SPACE}' for the space (byte-level BPE is not supported)"
    if len(steps) > 1:
        return "its normalizer does more than replace the space, which is not supported"
    splitting = content.get("pre_tokenizer") or {}
    if splitting and splitting.get("pattern") != {"String": " "}:
        return f"its pre-tokenizer ({splitting.get('type')}) splits text, which is not supported"
    return ""


def continued(base: Base, learned: Sequence[LearnedPiece], padding: int) -> dict[str, Any]:
    """The content of the new ``tokenizer.json``: the base's, with pieces, their merges and padding at the end.

    An added token that is not in the base's vocabulary, as Gemma-3's ``<image_soft_token>``, is put into it: the
    ``tokenizers`` library ignores the id in the file and gives such a token the first one after the vocabulary.
    """
    model = base.content["model"]
    texts = [*base.pieces, *(piece.text for piece in learned)]
    spelled = isinstance(model["merges"][0], str)
    pairs = [[texts[first], texts[second]] for first, second in (piece.merge for piece in learned)]
    vocab = model["vocab"] | {each["content"]: each["id"] for each in base.content.get("added_tokens") or ()}
    vocab |= {piece.text: piece.id for piece in learned}
    vocab |= {PADDING.format(number): len(texts) + number for number in range(padding)}
    merges = [*model["merges"], *((" ".join(pair) for pair in pairs) if spelled else pairs)]
    return {**base.content, "model": {**model, "vocab": vocab, "merges": merges}}


def dumped(content: dict[str, Any]) -> str:
    """A ``tokenizer.json`` as the ``tokenizers`` library lays it out."""
    return json.dumps(content, ensure_ascii=False, indent=2)


def lineage(base: Base, learned: Sequence[LearnedPiece], made: str, facts: dict[str, Any]) -> str:
    """``tokenizer.lineage.json``: what the new tokenizer was made of, a line for each of its pieces."""
    about = {
        "schema": LINEAGE_SCHEMA,
        "tokenizer": digest.of_bytes(made.encode()),
        "base": {"name": base.file.resolve().parent.name, "digest": base.digest, "size": base.size},
        **facts,
    }
    head = json.dumps(about, ensure_ascii=False, indent=1).removesuffix("\n}")
    lines = (
        json.dumps(
            {
                "id": piece.id,
                "piece": piece.text,
                "merge": piece.merge,
                "constituents": piece.constituents,
                "count": piece.count,
            },
            ensure_ascii=False,
        )
        for piece in learned
    )
    return f'{head},\n "pieces": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def companion_files(file: Path, engine: FastTokenizer) -> dict[str, str]:
    """The small files that go with a tokenizer: the base's where it has them, else a ``tokenizer_config.json``."""
    found = {
        name: (file.parent / name).read_text(encoding="utf-8")
        for name in (CONFIG, *COMPANION_FILES)
        if (file.parent / name).is_file()
    }
    if CONFIG not in found:
        found[CONFIG] = config_of(engine)
    return found


def config_of(engine: FastTokenizer) -> str:
    """A ``tokenizer_config.json`` that names the tokens for begin and end by what they are usually called."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, names in (("bos_token", BEGIN_NAMES), ("eos_token", END_NAMES), ("unk_token", ("<unk>",))):
        known = next((each for each in names if engine.token_to_id(each) is not None), None)
        if known is not None:
            config[key] = known
    return json.dumps(config, indent=2) + "\n"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
