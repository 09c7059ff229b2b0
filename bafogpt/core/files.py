"""Local files: written whole or not at all, named safely, never on a full disk by surprise."""

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
    """Put ``data`` at ``path`` so that a reader, or a power cut, meets the old content or the new, never a part."""
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
    """Raise :class:`ConflictError` where ``out`` is there already, unless it is an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConflictError(f"{out} exists already", "choose another --out")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` when all of it is written, and is gone when it is not.

    Raises :class:`ConflictError` where ``out`` is there already: before anything is written, and once more at the end.
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
    """A folder for what is needed for a while, on the disk where the result will be; gone afterwards."""
    beside.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=beside, prefix=".scratch-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """fsync a file that something else has written."""
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

    Raises :class:`CorruptError` for what could leave it: absolute paths, ``..``, backslashes, NUL, empty parts.
    Every name that comes from a manifest goes through here before it touches a disk.
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
    """Turn "no space left on device" (and a quota that is used up) into :class:`DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(f"{folder}: no space left on the disk", f"df -h {folder}") from error
        raise
