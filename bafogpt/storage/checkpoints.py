"""Checkpoints in a bucket: uploaded, found, fetched, retired. The manifest is written last and deleted first.

::

    step-00000040.json                      the manifest; what no manifest names does not exist
    step-00000040/<upload>/<file>           one prefix per upload: a writer that wakes up late touches nothing

A manifest names its objects, so a file that has not changed since an earlier checkpoint is named again and not sent
again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bafogpt.core import digest, files
from bafogpt.core.errors import BafoError, ConflictError, CorruptError, NotFoundError
from bafogpt.storage.bucket import Bucket

log = logging.getLogger(__name__)
FORMAT = "bafogpt.checkpoint/1"
_MANIFEST = re.compile(r"step-(\d{8,})\.json")
_HINT = "an earlier checkpoint is used in its place"


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: its local name, and the object (below ``checkpoints/``) that holds its content."""

    name: str
    bytes: int
    digest: str
    object: str


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
        """The manifest."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Checkpoint:
        """Read a manifest; ``where`` names it in errors. Raises :class:`CorruptError` for anything but a whole one."""
        try:
            raw = json.loads(data)
            if raw.pop("format") != FORMAT:
                raise CorruptError(f"{where}: not of format {FORMAT!r}", "pip install --upgrade bafogpt")
            listed = tuple(CheckpointFile(**each) for each in raw.pop("files"))
            checkpoint = cls(files=listed, **raw)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CorruptError(f"{where}: not a checkpoint manifest", _HINT) from None
        typed = _is_typed(checkpoint) and all(map(_is_typed, checkpoint.files))
        if not typed or not checkpoint.files:
            raise CorruptError(f"{where}: not a checkpoint manifest", _HINT)
        for each in checkpoint.files:
            files.safe_relative(each.object)
            if len(files.safe_relative(each.name).parts) != 1:
                raise CorruptError(f"{where}: '{each.name}' is not a plain file name", _HINT)
        return checkpoint


class CheckpointStore:
    """The checkpoints of one run; ``bucket`` is the folder ``runs/<run>/checkpoints``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def upload(
        self, folder: Path, *, step: int, samples: int, upload_id: str, metadata: Mapping[str, Any]
    ) -> Checkpoint:
        """Send the files of ``folder`` (flat, complete), verify what arrived, then commit the manifest.

        ``upload_id`` must be new for each try. A step that is complete already with the same content is returned;
        with other content it raises :class:`ConflictError`, unless it is damaged: then it is replaced. Raises
        :class:`CorruptError` when what arrived is not what was sent.
        """
        complete = self.complete()
        listed, new = [], []
        known = {(each.digest, each.bytes): each for checkpoint in complete for each in checkpoint.files}
        for path in _flat_files(folder):
            file = CheckpointFile(
                path.name, path.stat().st_size, digest.of_file(path), f"step-{step:08d}/{upload_id}/{path.name}"
            )
            earlier = known.get((file.digest, file.bytes))
            if earlier is not None and (earlier in new or self._is_sound(earlier)):
                file = replace(file, object=earlier.object)
            else:
                known[file.digest, file.bytes] = file
                new.append(file)
            listed.append(file)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        checkpoint = Checkpoint(step, samples, created, upload_id, tuple(listed), dict(metadata))
        for other in complete:
            if other.step == step and self._settle(checkpoint, other, folder):
                return other
        for file in new:
            self._send(file, folder / file.name)
        try:
            self._bucket.put(f"{checkpoint.name}.json", checkpoint.to_json(), create_only=True)
        except ConflictError:  # somebody else was a little faster
            other = self._read(f"{checkpoint.name}.json")
            if not checkpoint.holds_the_same(other):
                raise
            return other
        return checkpoint

    def complete(self) -> list[Checkpoint]:
        """Every checkpoint with a readable manifest, newest last."""
        found = []
        for name in self._manifests():
            try:
                found.append(self._read(name))
            except NotFoundError:  # retired since it was listed
                continue
            except CorruptError as error:
                log.warning("checkpoint manifest skipped: %s", error.message)
        return found

    def problems(self, checkpoint: Checkpoint) -> list[str]:
        """The files of a checkpoint that the bucket does not hold as its manifest says; every byte is read."""
        unsound = [file.object for file in checkpoint.files if not self._is_sound(file)]
        return [f"{self._bucket.url}/{name} is not what the manifest of {checkpoint.name} says" for name in unsound]

    def fetch(self, checkpoint: Checkpoint, into: Path) -> Path:
        """The checkpoint as a folder of local files, ``into/step-…``, all of them verified.

        Files there already whose content is right are not fetched. The folder appears whole or not at all. Raises
        :class:`CorruptError` or :class:`NotFoundError` when the bucket does not hold what the manifest says.
        """
        folder, partial = into / checkpoint.name, into / f".{checkpoint.name}.partial"
        if _is_exactly(folder, checkpoint):
            return folder
        partial.mkdir(parents=True, exist_ok=True)
        wanted = {file.name: file for file in checkpoint.files}
        for path in partial.iterdir():
            if path.name not in wanted or not _matches(path, wanted[path.name]):
                path.unlink()
        missing = [file for file in checkpoint.files if not (partial / file.name).exists()]
        files.require_space(into, sum(file.bytes for file in missing), f"checkpoint {checkpoint.name}")
        for file in missing:
            target = partial / file.name
            if _matches(folder / file.name, file):
                os.link(folder / file.name, target)
                continue
            self._bucket.download(file.object, target)
            if not _matches(target, file):
                target.unlink()
                raise CorruptError(f"{self._bucket.url}/{file.object}: not what was written", _HINT)
        files.sync_folder(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        files.sync_folder(into)
        return folder

    def fetch_newest(self, into: Path) -> tuple[Checkpoint, Path] | None:
        """The newest checkpoint that is whole, fetched; ``None`` when there is none.

        One that turns out to be damaged is reported as a warning, and the one before is tried. Other failures, such
        as an unreachable server, are raised: an old checkpoint is no answer to those.
        """
        for checkpoint in reversed(self.complete()):
            try:
                return checkpoint, self.fetch(checkpoint, into)
            except (CorruptError, NotFoundError) as error:
                log.warning("checkpoint %s is damaged, trying the one before: %s", checkpoint.name, error.message)
        return None

    def retain(self, last: int, every: int | None = None) -> list[int]:
        """Retire all but the newest ``last`` checkpoints, and those whose step is a multiple of ``every``.

        Manifests go first, then the objects that none of the remaining names, leftovers of uploads that never
        became complete included if they are of earlier steps than the newest checkpoint. Returns the retired steps.
        """
        if last < 1:
            raise ValueError("the newest checkpoint is always kept")
        complete = self.complete()
        if not complete:
            return []
        retired = [each for each in complete[:-last] if not (every and each.step % every == 0)]
        for checkpoint in retired:
            self._bucket.delete(f"{checkpoint.name}.json")
        gone = {checkpoint.step for checkpoint in retired}
        named = {file.object for each in complete if each.step not in gone for file in each.files}
        for info in self._bucket.list():
            top = re.match(r"step-(\d+)/", info.path)
            if top and info.path not in named and int(top.group(1)) <= complete[-1].step:
                self._bucket.delete(info.path)
        return sorted(gone)

    def _manifests(self) -> list[str]:
        """Names of all manifests, oldest step first."""
        steps = {}
        for info in self._bucket.list():
            match = _MANIFEST.fullmatch(info.path)
            if match:
                steps[int(match.group(1))] = info.path
        return [steps[step] for step in sorted(steps)]

    def _read(self, name: str) -> Checkpoint:
        where = f"{self._bucket.url}/{name}"
        checkpoint = Checkpoint.from_json(self._bucket.get(name), where)
        if f"{checkpoint.name}.json" != name:
            raise CorruptError(f"{where} is the manifest of step {checkpoint.step}", _HINT)
        return checkpoint

    def _send(self, file: CheckpointFile, path: Path) -> None:
        """Upload one file and read back what arrived."""
        self._bucket.upload(file.object, path)
        if not self._is_sound(file):
            raise CorruptError(f"{self._bucket.url}/{file.object}: what arrived is not what was sent", "send it again")

    def _is_sound(self, file: CheckpointFile) -> bool:
        """Whether the bucket holds the file's content: its size, then every byte."""
        try:
            if self._bucket.info(file.object).bytes != file.bytes:
                return False
            return digest.of_chunks(self._bucket.chunks(file.object)) == file.digest
        except NotFoundError:
            return False

    def _settle(self, mine: Checkpoint, theirs: Checkpoint, folder: Path) -> bool:
        """Two checkpoints of one step: True when ``theirs`` stands (the same as mine; what is damaged is sent again),
        False when it was damaged, other than mine, and is gone now. Raises :class:`ConflictError` otherwise."""
        damaged = [file for file in theirs.files if not self._is_sound(file)]
        if mine.holds_the_same(theirs):
            for file in damaged:
                self._send(file, folder / file.name)
            return True
        where = f"{self._bucket.url}/{mine.name}.json"
        if not damaged:
            raise ConflictError(f"{where} exists with other content", f"bafogpt storage ls {self._bucket.url}")
        log.warning("%s is damaged (%s) and is replaced", where, damaged[0].object)
        self._bucket.delete(f"{theirs.name}.json")
        return False


def _is_typed(record: Checkpoint | CheckpointFile) -> bool:
    """Whether each field that JSON gave is of its type, and no number is negative."""
    kinds = {"int": int, "str": str, "dict[str, Any]": dict, "tuple[CheckpointFile, ...]": tuple}
    values = [(getattr(record, each.name), kinds[str(each.type)]) for each in fields(record)]
    return all(type(value) is kind and not (isinstance(value, int) and value < 0) for value, kind in values)


def _flat_files(folder: Path) -> list[Path]:
    """The regular files of a folder, by name. Raises :class:`BafoError` for an empty one and for anything else."""
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BafoError(f"{path} is not a regular file", "a checkpoint is a flat folder of files")
        files.safe_relative(path.name)
    if not paths:
        raise BafoError(f"{folder} is empty", "a checkpoint has at least one file")
    return paths


def _matches(path: Path, file: CheckpointFile) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return digest.matches(path, file.digest)


def _is_exactly(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether the folder holds the checkpoint's files, all right, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {file.name for file in checkpoint.files}:
        return False
    return all(_matches(folder / file.name, file) for file in checkpoint.files)
