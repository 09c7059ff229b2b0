"""What one checkpoint is: its manifest, written last, believed only when every byte of it is right."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files
from bafogpt.core.errors import BafoError, CorruptError
from bafogpt.storage.transfer.download import JOURNAL, PARTIAL

FORMAT = "bafogpt.checkpoint/1"
HINT = "an earlier checkpoint is used in its place"


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: its local name, and the object (below ``checkpoints/``) that holds its content."""

    name: str
    bytes: int
    digest: str
    object: str
    etag: str = ""
    """What the server called the object when its content was verified; the same name still means the same content."""


@dataclass(frozen=True)
class Checkpoint:
    """What a manifest says."""

    step: int
    samples: int
    """Samples trained on, and so the index of the next one."""
    created: str
    upload_id: str
    files: tuple[CheckpointFile, ...]
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}"

    def holds_the_same(self, other: Checkpoint) -> bool:
        """Whether a run restored from either would be the same run."""
        mine, theirs = ({each.name: each.digest for each in which.files} for which in (self, other))
        return (self.step, self.samples, mine) == (other.step, other.samples, theirs)

    def to_json(self) -> bytes:
        """The manifest, its own digest included."""
        plain = {"format": FORMAT, **asdict(self)}
        return json.dumps({**plain, "digest": digest.of_json(plain)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Checkpoint:
        """Read a manifest; ``where`` names it in errors. Raises :class:`CorruptError` for anything but a whole one."""
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT:
                raise CorruptError(f"{where}: not of format {FORMAT!r}", "pip install --upgrade bafogpt")
            if raw.pop("digest") != digest.of_json(raw):
                raise CorruptError(f"{where}: the manifest is not what was written", HINT)
            del raw["format"]
            listed = tuple(CheckpointFile(**each) for each in raw.pop("files"))
            checkpoint = cls(files=listed, **raw)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CorruptError(f"{where}: not a checkpoint manifest", HINT) from None
        typed = _is_typed(checkpoint) and all(map(_is_typed, checkpoint.files))
        if not typed or not checkpoint.files:
            raise CorruptError(f"{where}: not a checkpoint manifest", HINT)
        _check_names(checkpoint, where)
        return checkpoint


def flat_files(folder: Path) -> list[Path]:
    """The regular files of a folder, by name. Raises :class:`BafoError` for an empty one and for anything else."""
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BafoError(f"{path} is not a regular file", "a checkpoint is a flat folder of files")
        if not _is_plain(path.name):
            raise BafoError(f"{path} cannot be part of a checkpoint under this name", f"rename {path}")
    if not paths:
        raise BafoError(f"{folder} is empty", "a checkpoint has at least one file")
    return paths


def matches(path: Path, file: CheckpointFile) -> bool:
    """Whether a local file is that file of a checkpoint."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return digest.matches(path, file.digest)


def _check_names(checkpoint: Checkpoint, where: str) -> None:
    seen: set[str] = set()
    for each in checkpoint.files:
        files.safe_relative(each.object)
        if not _is_plain(each.name):
            raise CorruptError(f"{where}: '{each.name}' is not a plain file name", HINT)
        if each.name in seen:
            raise CorruptError(f"{where}: '{each.name}' is listed twice", HINT)
        seen.add(each.name)


def _is_plain(name: str) -> bool:
    """One safe part, and no name that a fetch keeps for itself."""
    try:
        return len(files.safe_relative(name).parts) == 1 and not name.endswith((PARTIAL, JOURNAL))
    except CorruptError:
        return False


def _is_typed(record: Checkpoint | CheckpointFile) -> bool:
    """Whether each field that JSON gave is of its type, and no number is negative."""
    kinds = {"int": int, "str": str, "dict[str, Any]": dict, "tuple[CheckpointFile, ...]": tuple}
    values = [(getattr(record, each.name), kinds[str(each.type)]) for each in fields(record)]
    return all(type(value) is kind and not (isinstance(value, int) and value < 0) for value, kind in values)
