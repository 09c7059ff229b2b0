"""Local files: atomic writes, safe names, free space."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bafogpt.core.errors import ConflictError, CorruptError, DiskFullError


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` atomically: readers see the old or the new content, also after a power cut."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_named(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    sync_folder(path.parent)


def require_new(out: Path) -> None:
    """Raise :class:`ConflictError` where ``out`` exists and is not an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConflictError(f"{out} exists already", "choose another --out")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends, and is removed if it raises.

    Raises :class:`ConflictError` where ``out`` exists, at the beginning and at the end.
    """
    require_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_named(out.parent):
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            sync_folder(temporary)
            require_new(out)
            temporary.replace(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def created_folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block raises, remove those made here that are still empty."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder in ``beside``, removed afterwards."""
    beside.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=beside, prefix=".scratch-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """fsync a file that is closed already."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def safe_relative(name: str) -> PurePosixPath:
    """``name`` as a path below some folder.

    Raises :class:`CorruptError` for names that could leave it: absolute paths, ``..``, backslashes, NUL, empty parts.
    Every name from a manifest is checked here before it is used on a disk.
    """
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise CorruptError(f"unsafe file name in a manifest: {name!r}", "do not use what this manifest lists")
    return PurePosixPath(name)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise :class:`DiskFullError` unless ``folder``'s disk has ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder}: {what} needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free", f"df -h {folder}"
        )


@contextlib.contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Raise :class:`DiskFullError` for "no space left on device" and exceeded quotas."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(f"{folder}: no space left on the disk", f"df -h {folder}") from error
        raise
