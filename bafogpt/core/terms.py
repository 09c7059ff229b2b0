"""Licence terms that go with a model: which files have them, and the notice of a Gemma derivative.

A model folder that is made from another carries its licence files along. One that is made from a Gemma also has a
``NOTICE`` with the sentence that the Gemma Terms of Use ask for, and a line for each change to the files. Source:
section 3.1 of https://ai.google.dev/gemma/terms (a copy of the terms, a notice of modified files, the ``NOTICE``). The
text of the terms is Google's and does not come with this project; :data:`GEMMA_TERMS` is where it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bafogpt.core import files

NOTICE = "NOTICE"
TERMS_BYTES = 1 << 20
GEMMA = "gemma"
"""The licence's name on the Hugging Face Hub."""
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
GEMMA_POLICY = "https://ai.google.dev/gemma/prohibited_use_policy"
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_HEAD = f"""{GEMMA_NOTICE}
Its use is restricted by the Gemma Prohibited Use Policy found at ai.google.dev/gemma/prohibited_use_policy

This model is a derivative of Gemma, and its files are not Google's. They were modified with bafogpt as follows:
"""
_GEMMA = re.compile(r"gemma2|gemma3_text|(google/)?gemma-[23]-.*", re.IGNORECASE)
"""Model types of ``config.json``, and names, of the models under these terms that this project reads. Gemma 4 has
another licence."""
_TERMS = re.compile(
    r"(licen[cs]e|copying|terms|notice|use_policy|prohibited_use_policy)[\w -]*(\.(txt|md|html|pdf))?", re.IGNORECASE
)


def is_terms(name: str) -> bool:
    """Whether a file of that name at the top of a model folder has terms: ``LICENSE``, ``NOTICE.txt``, …"""
    return _TERMS.fullmatch(name) is not None


def files_in(folder: Path) -> list[Path]:
    """The files with terms at the top of a folder, at most :data:`TERMS_BYTES` long."""
    return sorted(
        path
        for path in folder.iterdir()
        if is_terms(path.name) and is_of(folder, path) and path.stat().st_size <= TERMS_BYTES
    )


def is_of(folder: Path, path: Path) -> bool:
    """Whether a file of a model folder may be carried along.

    It must lie in the folder itself or, in a Hugging Face cache, among the blobs that snapshots link to. Following a
    link to any other file would publish that file.
    """
    if not path.is_file():
        return False
    real, home = path.resolve(), folder.resolve()
    cached = real.parent.name == "blobs" and home.parent.name == "snapshots" and real.parent.parent == home.parents[1]
    return real.parent == home or cached


def licence_of(model: str) -> str:
    """The Hub's name of the licence of a derivative of ``model``, a ``model_type`` or a name; empty if not known."""
    return GEMMA if _GEMMA.fullmatch(model) else ""


def add_notice(folder: Path, model: str, changes: Sequence[str]) -> None:
    """Write the ``NOTICE`` of a folder derived from ``model``, or add ``changes`` to it; for a Gemma only.

    What a ``NOTICE`` in the folder says already is kept, and no change is listed twice. Each change says which files
    were modified, and by what.
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
