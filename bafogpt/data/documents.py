"""Reads the documents of one text file; errors name file and line.

``.jsonl`` holds one document a line (``text``, and ``stage``, ``source``, ``lang`` where known); ``.txt`` and
``.md`` hold one document a file; each may be ``.gz`` or ``.zst``. Nothing here holds more than one document in memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from bafogpt.core import digest as digests
from bafogpt.core.errors import DataError, UnreachableError
from bafogpt.data import curriculum

COMPRESSED = (".gz", ".zst")
TEXT = (".txt", ".md")
SUFFIXES = (".jsonl", *TEXT)


@dataclass(frozen=True)
class Document:
    """One text, and where it belongs."""

    text: str
    stage: str
    """One of :data:`bafogpt.data.curriculum.KNOWN`."""
    source: str
    """Where the text comes from; the file's name where the record does not say."""
    lang: str
    """ISO 639 code, ``eng-zul`` for parallel text, or empty where the record does not say."""
    where: str
    """``FILE:LINE``, for errors."""


@dataclass
class TextFile:
    """One file of text. The last three fields are set when :meth:`read` has finished."""

    path: str
    """Name in errors."""
    name: str
    """Name in manifests: the path below the source, never a path of this machine."""
    open: Callable[[], IO[bytes]]
    """The file's content, decompressed."""
    documents: int = 0
    empty: int = 0
    """Records without text, which are skipped."""
    digest: str = ""
    """Of the decompressed content."""

    def read(self, stage: str | None = None, language: str | None = None) -> Iterator[Document]:
        """The documents in the file's order. ``stage`` is for records that do not name one.

        With ``language`` only text in that language: the field of that name where a record has one (parallel text has
        ``eng`` and ``zul``), else the text of records that name no other language.

        Raises :class:`DataError` naming file and line for what is not text, not JSON, without ``text`` or without
        a known stage.
        """
        self.documents = self.empty = 0
        for where, each in self._records():
            if (record := _side(each, language)) is None:
                continue
            document = self._document(record, stage, where)
            if document.text.strip():
                self.documents += 1
                yield document
            else:
                self.empty += 1

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(``FILE:LINE``, object) of each line of a ``.jsonl`` file that is not blank.

        Raises :class:`DataError` naming file and line for what is not text or not a JSON object.
        """
        self.documents = 0
        for each in self._records():
            self.documents += 1
            yield each

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The lines of a ``.jsonl`` file that are not blank, or the whole of another file."""
        is_json = kind_of(self.name) == ".jsonl"
        hasher = digests.hasher("blake3")
        with self._readable(), self.open() as file:
            for number, raw in enumerate(file if is_json else [file.read()], start=1):
                hasher.update(raw)
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    line = number + raw.count(b"\n", 0, error.start)
                    byte = error.start - raw.rfind(b"\n", 0, error.start)
                    message = f"{self.path}:{line}: not UTF-8 text (byte {byte})"
                    raise DataError(message, f"file {self.path}") from None
                where = f"{self.path}:{number}"
                if not is_json:
                    yield where, {"text": text}
                elif text.strip():
                    yield where, _record(text, where, self.path)
        self.digest = f"blake3:{hasher.hexdigest()}"

    def _document(self, record: dict[str, Any], stage: str | None, where: str) -> Document:
        text, own = record.get("text"), record.get("stage")
        if not isinstance(text, str):
            there = ", ".join(map(repr, list(record)[:5])) or "nothing"
            what = "'text' is not a string" if "text" in record else f"no 'text' (there is {there})"
            raise DataError(f"{where}: {what}", f"edit {self.path}")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell it: "\ud800"
            raise DataError(f"{where}: 'text' holds half of a surrogate pair", f"edit {self.path}") from None
        name = str(own or stage or self._stage_of_name())
        if not name:
            raise DataError(f"{where}: no 'stage', and the file's name does not begin with one", "add --stage NAME")
        curriculum.require_stage(name, where)
        source = str(record.get("source") or stem_of(self.name))
        return Document(text, name, source, str(record.get("lang") or ""), where)

    def _stage_of_name(self) -> str:
        first = re.split(r"[^a-z]", self.name.rpartition("/")[2].lower(), maxsplit=1)[0]
        return first if first in curriculum.KNOWN else ""

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Name the file when a disk, a decompressor or a bucket fails."""
        try:
            yield
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise DataError(f"{self.path}: {error.strerror}", f"ls -l {self.path}") from error
            raise DataError(f"{self.path}: cannot be read ({error})", f"file {self.path}") from error
        except Exception as error:
            package = type(error).__module__.split(".")[0]
            if package in ("backports", "compression"):  # ZstdError, wherever this Python has it
                raise DataError(f"{self.path}: cannot be read ({error})", f"file {self.path}") from error
            if package in ("botocore", "urllib3"):
                raise UnreachableError(
                    f"{self.path}: reading failed ({error})", "run the same command again"
                ) from error
            raise


def in_memory(name: str, content: bytes) -> TextFile:
    """A file held in memory."""
    return TextFile(name, name, lambda: io.BytesIO(content))


def on_disk(path: Path, name: str) -> TextFile:
    """A local file, decompressed by its suffix."""

    def opened() -> IO[bytes]:
        import smart_open

        return cast(IO[bytes], smart_open.open(str(path), "rb"))

    return TextFile(str(path), name, opened)


def _record(text: str, where: str, path: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})", f"edit {path}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, not an object", f"edit {path}")
    return record


def _side(record: dict[str, Any], language: str | None) -> dict[str, Any] | None:
    """The record's text in ``language``; None where it has none."""
    if language is None:
        return record
    if isinstance(record.get(language), str):
        return {**record, "text": record[language], "lang": language}
    return record if record.get("lang") in (None, "", language) else None


def kind_of(name: str) -> str:
    """``.jsonl``, ``.txt`` or ``.md``, whether compressed or not; empty for anything else."""
    plain = name.lower()
    for suffix in COMPRESSED:
        plain = plain.removesuffix(suffix)
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), "")


def stem_of(name: str) -> str:
    """The file's name without folder and endings."""
    return name.rpartition("/")[2].partition(".")[0]
