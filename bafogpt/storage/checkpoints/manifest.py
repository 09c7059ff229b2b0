"""The manifest of one checkpoint: written last, and trusted only when every byte of it matches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files
from bafogpt.core.errors import BafoError, CorruptError
from bafogpt.storage import json_manifest
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
    """The server's ETag when the content was verified; while it stays the same, so does the content."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its training step, its files, and the trainer's metadata."""

    step: int
    samples: int
    """Samples trained on, which is the index of the next one."""
    created: str
    upload_id: str
    files: tuple[CheckpointFile, ...]
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}"

    def holds_the_same(self, other: Checkpoint) -> bool:
        """Whether both checkpoints restore the same state."""
        mine, theirs = ({each.name: each.digest for each in which.files} for which in (self, other))
        return (self.step, self.samples, mine) == (other.step, other.samples, theirs)

    def to_json(self) -> bytes:
        return json_manifest.encode(self, FORMAT, indent=1)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Checkpoint:
        """Parse a manifest; ``where`` names it in errors. Raises :class:`CorruptError`."""
        checkpoint = json_manifest.parse(cls, data, where, form=FORMAT, hint=HINT)
        if min(checkpoint.step, checkpoint.samples, *(each.bytes for each in checkpoint.files)) < 0:
            raise CorruptError(f"{where}: a number is negative", HINT)
        names = [each.name for each in checkpoint.files]
        if not names or len(set(names)) < len(names):
            raise CorruptError(f"{where}: no files, or two of one name", HINT)
        for each in checkpoint.files:
            files.safe_relative(each.object)
            if not _is_flat_name(each.name):
                raise CorruptError(f"{where}: '{each.name[:80]}' is not a plain file name", HINT)
        return checkpoint


def flat_files(folder: Path) -> list[Path]:
    """The regular files of a folder, by name. Raises :class:`BafoError` for an empty one and for anything else."""
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BafoError(f"{path} is not a regular file", "a checkpoint is a flat folder of files")
        if not _is_flat_name(path.name):
            raise BafoError(f"{path} cannot be part of a checkpoint under this name", f"rename {path}")
    if not paths:
        raise BafoError(f"{folder} is empty", "a checkpoint has at least one file")
    return paths


def matches(path: Path, file: CheckpointFile) -> bool:
    """Whether a local file is that file of a checkpoint."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return digest.matches(path, file.digest)


def _is_flat_name(name: str) -> bool:
    """Whether a file can have this name: one safe path part that no download uses for its own files."""
    try:
        return len(files.safe_relative(name).parts) == 1 and not name.endswith((PARTIAL, JOURNAL))
    except CorruptError:
        return False
