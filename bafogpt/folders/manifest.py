"""The manifest of a model folder: all its files by name, size and hash, in ``manifest.json``.

::

    manifest.json          this; complete only when every file it names is there
    model.safetensors      files by their own names, flat or nested: any other tool can use them as they are
    tokenizer/…

While a folder is written its manifest says ``"state": "unfinished"`` and lists the files that have arrived. So half a
folder is never taken for a whole one, a push over an older model never shows files of both, and an interrupted push
resumes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bafogpt.core import files
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage import json_manifest
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer.download import JOURNAL, PARTIAL

FORMAT = "bafogpt.files/1"
MANIFEST = "manifest.json"
ManifestState = Literal["unfinished", "complete"]
DIGEST_CHARS = 64
"""Hex digits of a blake3 or a sha256."""
_NAMES_HINT = "rename the files, or do not use what this manifest lists"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file: its name within the folder, size, and content as ``blake3:hex``."""

    name: str
    bytes: int
    digest: str
    sha256: str = ""
    """Hex, where it is known: the Hugging Face Hub identifies content by it."""
    etag: str = ""
    """The server's ETag when the file was written; while it stays the same, so does the content."""


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """A model folder."""

    files: tuple[ModelFile, ...]
    state: ManifestState = "complete"
    created: str
    """ISO 8601, UTC."""
    writer: str = ""
    """The id of the push that wrote it: a push that finds another id here has been overtaken."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Facts about the model: ``step``, ``tokens``, ``base_model``, …"""

    def is_complete(self, names: Iterable[str], metadata: Mapping[str, Any]) -> bool:
        """Whether the folder is complete, with exactly these files and this metadata."""
        found = {each.name for each in self.files}
        return (self.state, found, self.metadata) == ("complete", set(names), metadata)

    def to_json(self) -> bytes:
        return json_manifest.encode(self, FORMAT, indent=1)


def load(bucket: Bucket) -> ModelManifest | None:
    """The manifest in the folder ``bucket``; ``None`` where there is none, or one of another kind of folder.

    Raises :class:`CorruptError` for one that claims to be of this format and is not.
    """
    try:
        data = bucket.get(MANIFEST)
    except NotFoundError as error:
        if not error.message.startswith(f"{bucket.url}/{MANIFEST}"):  # the bucket itself is missing
            raise
        return None
    is_ours = json_manifest.format_of(data).startswith("bafogpt.files/")
    return from_json(data, f"{bucket.url}/{MANIFEST}") if is_ours else None


def from_json(data: bytes, where: str) -> ModelManifest:
    """Parse a manifest; ``where`` names it in errors.

    Raises :class:`CorruptError` for anything else, and for names that :func:`check_names` refuses.
    """
    hint = f"bafogpt storage push … {where.rpartition('/')[0]} rewrites it"
    manifest = json_manifest.parse(ModelManifest, data, where, form=FORMAT, hint=hint)
    for each in manifest.files:
        algorithm, _, value = each.digest.partition(":")
        lengths = {len(value), len(each.sha256) or DIGEST_CHARS}
        if each.bytes < 0 or algorithm not in ("blake3", "sha256") or lengths != {DIGEST_CHARS}:
            raise CorruptError(f"{where}: {each.name[:80]!r} has a wrong size or digest", hint)
    check_names((each.name for each in manifest.files), where)
    return manifest


def check_names(names: Iterable[str], where: str) -> None:
    """Raise :class:`CorruptError` unless all ``names`` can be files of one folder, on any system.

    Refused: paths out of the folder, the manifest's own name and those of unfinished downloads, duplicates, names that
    differ only in case or in Unicode form (one file on some disks), and a name that is another's folder.
    """
    known: dict[str, str] = {}
    for name in names:
        try:
            files.safe_relative(name)
        except CorruptError:
            raise CorruptError(f"{where}: unsafe file name {name[:80]!r}", _NAMES_HINT) from None
        if _folded(name) == MANIFEST:
            raise CorruptError(f"{where}: {name[:80]!r} is the manifest's own name", _NAMES_HINT)
        if name.endswith((PARTIAL, JOURNAL)):
            raise CorruptError(f"{where}: {name[:80]!r} is the name of an unfinished download", f"remove {name[:80]}")
        other = known.get(_folded(name))
        if other == name:
            raise CorruptError(f"{where}: {name[:80]!r} is listed twice", _NAMES_HINT)
        if other is not None:
            raise CorruptError(
                f"{where}: {other[:80]!r} and {name[:80]!r} are the same file on some disks", _NAMES_HINT
            )
        known[_folded(name)] = name
    for folded, name in known.items():
        parts = folded.split("/")
        for end in range(1, len(parts)):
            if (other := known.get("/".join(parts[:end]))) is not None:
                raise CorruptError(f"{where}: {other[:80]!r} is a file and, in {name[:80]!r}, a folder", _NAMES_HINT)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
