"""The manifest of a model folder: all its files by name, size and hash, in ``manifest.json``.

::

    manifest.json          this; complete only when every file it names is there
    model.safetensors      files by their own names, flat or nested: any other tool can use them as they are
    tokenizer/…

While a folder is being written its manifest says ``"state": "unfinished"`` and lists what is there already. So nobody
takes half a folder for a whole one, a push over an older model never shows files of both, and a push that was cut off
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bafogpt.core import digest, files
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.transfer.download import JOURNAL, PARTIAL

FORMAT = "bafogpt.files/1"
MANIFEST = "manifest.json"
ManifestState = Literal["unfinished", "complete"]
_DIGEST_CHARS = {"blake3": 64, "sha256": 64}


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file: its name within the folder, size, and content as ``blake3:hex``."""

    name: str
    bytes: int
    digest: str
    sha256: str = ""
    """Hex, where it is known: the name that the Hugging Face Hub gives to content."""
    etag: str = ""
    """What the server called the object when it was written there; as long as it does, nobody has changed it."""


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """A model folder."""

    files: tuple[ModelFile, ...]
    state: ManifestState = "complete"
    created: str
    """When, as ISO 8601 in UTC."""
    writer: str = ""
    """Which push wrote it: one that finds another's name here has been overtaken."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the model: ``step``, ``tokens``, ``base_model``, …"""

    def to_json(self) -> bytes:
        """What :func:`from_json` reads, its own digest included."""
        plain = {"format": FORMAT, **dataclasses.asdict(self)}
        for each in plain["files"]:
            for name in ("sha256", "etag"):
                if not each[name]:
                    del each[name]
        plain["digest"] = digest.of_json(plain)
        return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False).encode()


def load(bucket: Bucket) -> ModelManifest | None:
    """The manifest in the folder ``bucket``; ``None`` where there is none, or that of another kind of folder.

    Raises :class:`CorruptError` for one that claims to be of this format and is not.
    """
    try:
        data = bucket.get(MANIFEST)
    except NotFoundError as error:
        if not error.message.startswith(f"{bucket.url}/{MANIFEST}"):  # the bucket itself is missing
            raise
        return None
    return from_json(data, f"{bucket.url}/{MANIFEST}") if format_of(data).startswith("bafogpt.files/") else None


def format_of(data: bytes) -> str:
    """The ``format`` that a manifest names; empty when it names none."""
    try:
        raw = json.loads(data)
    except ValueError:
        return ""
    return str(raw.get("format", "")) if isinstance(raw, dict) else ""


def from_json(data: bytes, where: str) -> ModelManifest:
    """Read a manifest; ``where`` names it in errors.

    Raises :class:`CorruptError` for what is not one, for a name that could leave the folder, and for two that are one.
    """
    found = format_of(data)
    if found != FORMAT:
        raise CorruptError(f"{where}: format {found!r}, this version reads {FORMAT!r}", "pip install --upgrade bafogpt")
    raw = json.loads(data)
    if raw.pop("digest", None) != digest.of_json(raw):
        raise _wrong(where, "not what was written")
    del raw["format"]
    try:
        listed = tuple(ModelFile(**each) for each in raw.pop("files"))
        manifest = ModelManifest(files=listed, **raw)
    except (TypeError, KeyError):
        raise _wrong(where, "not a manifest of files") from None
    _check(manifest, where)
    check_names((each.name for each in manifest.files), where)
    return manifest


def check_names(names: Iterable[str], where: str) -> None:
    """Raise :class:`CorruptError` unless all ``names`` can be files of one folder, on any system.

    Refused: what could leave the folder, the manifest's own name and those of unfinished fetches, one name twice,
    names that differ only in case or in Unicode form (one file on some disks), and a name that is another's folder.
    """
    known: dict[str, str] = {}
    for name in names:
        try:
            files.safe_relative(name)
        except CorruptError:
            raise CorruptError(f"{where}: unsafe file name {name!r}", _NAMES_HINT) from None
        if _folded(name) == MANIFEST:
            raise CorruptError(f"{where}: a file is called {name!r}, as the manifest itself", _NAMES_HINT)
        if name.endswith((PARTIAL, JOURNAL)):
            raise CorruptError(f"{where}: {name!r} is called as an unfinished fetch is", f"remove {name}")
        other = known.get(_folded(name))
        if other == name:
            raise CorruptError(f"{where}: {name!r} is listed twice", _NAMES_HINT)
        if other is not None:
            raise CorruptError(f"{where}: {other!r} and {name!r} are one file on some disks", _NAMES_HINT)
        known[_folded(name)] = name
    for folded, name in known.items():
        parts = folded.split("/")
        for end in range(1, len(parts)):
            if (other := known.get("/".join(parts[:end]))) is not None:
                raise CorruptError(f"{where}: {other!r} is a file and, in {name!r}, a folder", _NAMES_HINT)


_NAMES_HINT = "rename the files, or do not use what this manifest lists"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _wrong(where: str, what: str) -> CorruptError:
    return CorruptError(f"{where}: {what}", f"bafogpt storage push … {where.rpartition('/')[0]} writes it anew")


def _check(manifest: ModelManifest, where: str) -> None:
    """Each field is of its type, each number and digest one that can be."""
    texts = (manifest.created, manifest.writer)
    if manifest.state not in ("unfinished", "complete") or not all(isinstance(text, str) for text in texts):
        raise _wrong(where, "not a manifest of files")
    if not isinstance(manifest.metadata, dict):
        raise _wrong(where, "'metadata' is not an object")
    for each in manifest.files:
        if not all(isinstance(text, str) for text in (each.name, each.digest, each.sha256, each.etag)):
            raise _wrong(where, f"{each.name!r}: a text is not a text")
        if type(each.bytes) is not int or each.bytes < 0:
            raise _wrong(where, f"{each.name!r}: the size is {each.bytes!r}")
        algorithm, _, value = each.digest.partition(":")
        if len(value) != _DIGEST_CHARS.get(algorithm) or (each.sha256 and len(each.sha256) != _DIGEST_CHARS["sha256"]):
            raise _wrong(where, f"{each.name!r}: the digest is {each.digest!r}")
