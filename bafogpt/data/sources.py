"""Finds text files: local or ``s3://`` files and folders, files on the web, and the starter corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from bafogpt.core import settings as configuration
from bafogpt.core.errors import DataError, NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.data import starter
from bafogpt.data.documents import COMPRESSED, SUFFIXES, Document, TextFile, kind_of, on_disk, stem_of

STARTER = "starter"


def read_documents(
    source: str, stage: str | None = None, settings: Settings | None = None, language: str | None = None
) -> Iterator[Document]:
    """The documents of a source, optionally in one language. Raises what :func:`find` and reading raise."""
    for file in find(source, settings):
        yield from file.read(stage, language)


def find(source: str, settings: Settings | None = None) -> list[TextFile]:
    """The text files of ``source``, sorted: a file, a folder with its subfolders, or ``starter``.

    Hidden files and READMEs in a folder are left out. Raises :class:`NotFoundError`, and :class:`DataError` where no
    file is text.
    """
    if source == STARTER:
        return starter.files()
    if source.startswith("s3://"):
        found = _in_bucket(source, settings or configuration.load())
    elif source.startswith(("http://", "https://")):
        found = [_on_the_web(source)] if kind_of(source) else []
    else:
        found = _on_disk(Path(source.removeprefix("file://")))
    if not found:
        known = " ".join(SUFFIXES)
        raise DataError(f"{source}: no file of text ({known}, each also {' or '.join(COMPRESSED)})", f"ls {source}")
    return found


def _on_disk(path: Path) -> list[TextFile]:
    if path.is_file():
        return [on_disk(path, path.name)] if kind_of(path.name) else []
    if not path.is_dir():
        raise NotFoundError(f"{path} does not exist", f"ls {path.parent}")
    root = path.resolve().name
    names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    return [on_disk(path / name, f"{root}/{name}") for name in names if _is_text(name)]


def _in_bucket(url: str, settings: Settings) -> list[TextFile]:
    from bafogpt.storage.bucket import Bucket

    parent, _, last = url.rstrip("/").rpartition("/")
    if parent != "s3:/" and kind_of(last) and Bucket.open(parent, settings).exists(last):
        return [_object(url, last, settings)]
    names = sorted(info.path for info in Bucket.open(url, settings).list())
    if not names:
        raise NotFoundError(f"{url}: nothing is there", f"bafogpt storage ls {parent}/")
    return [_object(f"{url.rstrip('/')}/{name}", f"{last}/{name}", settings) for name in names if _is_text(name)]


def _on_the_web(url: str) -> TextFile:
    def opened() -> IO[bytes]:
        import smart_open

        return cast(IO[bytes], smart_open.open(url, "rb", transport_params={"timeout": 60}))

    return TextFile(url, url.rpartition("/")[2], opened)


def _object(url: str, name: str, settings: Settings) -> TextFile:
    def opened() -> IO[bytes]:
        import smart_open

        from bafogpt.storage.bucket import boto3_client

        return cast(IO[bytes], smart_open.open(url, "rb", transport_params={"client": boto3_client(settings)}))

    return TextFile(url, name, opened)


def _is_text(name: str) -> bool:
    """Whether a file of a folder is text, and neither hidden nor a README."""
    parts = name.split("/")
    return bool(kind_of(name)) and not any(part.startswith(".") for part in parts) and stem_of(name).upper() != "README"
