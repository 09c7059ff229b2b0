"""What the tokenizer tests share: a small base, made by the project from its own starter corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer

SHARED = Path(os.environ.get("BAFOGPT_SHARED") or Path(__file__).parents[3] / "shared") / "data"
GEMMA = SHARED / "gemma_tokenizer"
CORPUS = SHARED / "zulu" / "corpus"
NTREX = SHARED / "zulu" / "eval" / "ntrex_eng_zul.jsonl.gz"
ENGLISH = (
    "The farmers come to town before sunrise, and they put up their tables along the wall of the old station.",
    "She told the children that the river was high, and that nobody should cross it before the rain had stopped.",
)
ZULU = "Sawubona! Ngiyabonga kakhulu, izingane zifunda isiZulu esikoleni namhlanje ekuseni."


def require_shared(*paths: Path) -> None:
    """Skip where the larger test data is not there."""
    if not all(path.exists() for path in paths):
        pytest.skip("the larger test data is not beside the repository (BAFOGPT_SHARED names its place)")


def content_of(folder: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` in a folder."""
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def engine_of(folder: Path) -> FastTokenizer:
    """The ``tokenizers`` library's own reading of a folder, special tokens in text being text."""
    engine = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    engine.encode_special_tokens = True
    return engine


def ids(engine: FastTokenizer, text: str) -> list[int]:
    """The ids of ``text`` with nothing added."""
    found: list[int] = engine.encode(text, add_special_tokens=False).ids
    return found
