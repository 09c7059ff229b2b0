"""Licence files of a model, and the notice of a Gemma derivative.

A model folder derived from another has copies of its licence files. A derivative of a Gemma also has a ``NOTICE`` with
the sentence that the Gemma Terms of Use require, and one line per change. Source: section 3.1 of
https://ai.google.dev/gemma/terms. The text of the terms is Google's and not part of this project; its URL is
:data:`GEMMA_TERMS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bafogpt.core import files

NOTICE = "NOTICE"
TERMS_BYTES = 1 << 20
GEMMA = "gemma"
"""Name of the licence on the Hugging Face Hub."""
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
GEMMA_POLICY = "https://ai.google.dev/gemma/prohibited_use_policy"
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_HEAD = f"""{GEMMA_NOTICE}
Its use is restricted by the Gemma Prohibited Use Policy found at ai.google.dev/gemma/prohibited_use_policy

This model is a derivative of Gemma, and its files are not Google's. They were modified with bafogpt as follows:
"""
_GEMMA = re.compile(r"gemma2|gemma3_text|(google/)?gemma-[23]-.*", re.IGNORECASE)
"""Model types and names of the supported models under these terms. Gemma 4 has another licence."""
_TERMS = re.compile(
    r"(licen[cs]e|copying|terms|notice|use_policy|prohibited_use_policy)[\w -]*(\.(txt|md|html|pdf))?", re.IGNORECASE
)


def is_terms(name: str) -> bool:
    """Whether a file of a model folder is a licence file by its name: ``LICENSE``, ``NOTICE.txt``, …"""
    return _TERMS.fullmatch(name) is not None


def files_in(folder: Path) -> list[Path]:
    """The licence files in a folder, at most :data:`TERMS_BYTES` long."""
    return sorted(
        path
        for path in folder.iterdir()
        if is_terms(path.name) and is_of(folder, path) and path.stat().st_size <= TERMS_BYTES
    )


def is_of(folder: Path, path: Path) -> bool:
    """Whether a file of a model folder may be copied along.

    It must be in the folder itself or, in a Hugging Face cache, a blob that snapshots link to. Any other link could
    publish a private file.
    """
    if not path.is_file():
        return False
    real, home = path.resolve(), folder.resolve()
    cached = real.parent.name == "blobs" and home.parent.name == "snapshots" and real.parent.parent == home.parents[1]
    return real.parent == home or cached


def licence_of(model: str) -> str:
    """The licence of derivatives of ``model`` (a ``model_type`` or a name), as the Hub names it; empty if unknown."""
    return GEMMA if _GEMMA.fullmatch(model) else ""


def add_notice(folder: Path, model: str, changes: Sequence[str]) -> None:
    """Write the ``NOTICE`` of a folder derived from ``model``, or add ``changes`` to it; for a Gemma only.

    The content of an existing ``NOTICE`` is kept, and no change is listed twice.
    """
    if licence_of(model) != GEMMA:
        return
    path = next((path for path in files_in(folder) if path.name.upper() == NOTICE), folder / NOTICE)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        content += b"\n"
    head = _HEAD.encode()
    if head not in content:
        content = head + (b"\n" + content if content else b"")
    end = content.index(head) + len(head)
    while content.startswith(b"- ", end):  # the changes that are listed
        end = content.index(b"\n", end) + 1
    lines = (f"- {change}\n".encode() for change in changes)
    content = content[:end] + b"".join(line for line in lines if line not in content[:end]) + content[end:]
    files.write_atomic(path, content)
