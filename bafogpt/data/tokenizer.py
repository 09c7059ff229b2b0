"""Text to token ids and back: a ``tokenizer.json``, or the built-in byte tokenizer.

Nothing is added to the ids; the caller marks where a document begins and ends. Text that spells a special token
(``<eos>``) is tokenised as plain text, so nothing in a corpus can end a document early.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bafogpt.core import digest
from bafogpt.core.errors import DataError, NotFoundError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer as FastTokenizer

BYTES = "bytes"
END_NAMES = ("<eos>", "</s>", "<|endoftext|>")
BEGIN_NAMES = ("<bos>", "<s>")
UINT16_VOCAB = 1 << 16


class Tokenizer(ABC):
    """The interface of all tokenizers."""

    name: str
    digest: str
    """``blake3:`` of the ``tokenizer.json``. Equal digests mean equal ids."""
    vocab_size: int
    eos_id: int
    bos_id: int | None
    add_bos: bool
    """Whether the tokenizer itself puts :attr:`bos_id` before a text, as Gemma's does."""
    file: Path | None
    """The ``tokenizer.json``; None for the built-in one."""
    controls: Mapping[str, int]
    """The special tokens by spelling (``<bos>``, ``<end_of_turn>``). Only a prompt template writes them, never text."""

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """``uint16`` where every id fits, else ``uint32``."""
        return "uint16" if self.vocab_size <= UINT16_VOCAB else "uint32"

    @property
    def begin(self) -> list[int]:
        """The ids that every text begins with: ``<bos>`` or nothing."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def spelled(self, id: int | None) -> str:  # noqa: A002
        """The spelling of the special token ``id``; empty for any other id and for None."""
        return next((text for text, number in self.controls.items() if number == id), "")

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        """The ids of each text, as :attr:`dtype`, with no special ones added."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``."""


def load(name: str) -> Tokenizer:
    """``bytes``, a ``tokenizer.json``, or a folder with one.

    Raises :class:`NotFoundError`, and :class:`DataError` for one that is unreadable or has no end token.
    """
    if name == BYTES:
        return ByteTokenizer()
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no tokenizer.json" if path.is_dir() else f"no tokenizer at {path}"
        raise NotFoundError(what, "--tokenizer bytes, or --tokenizer FOLDER with a tokenizer.json")
    return JsonTokenizer(file)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: 0 padding, 1 end, 2 begin, and byte *b* is id *b* + 3."""

    OFFSET = 3

    def __init__(self) -> None:
        self.name = BYTES
        self.digest = digest.of_bytes(b"bafogpt.bytes/1")
        self.vocab_size = 320  # 259 ids, on to a multiple of 64
        self.eos_id = 1
        self.bos_id = 2
        self.add_bos = False
        self.file = None
        self.controls = {"<eos>": 1, "<bos>": 2}

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        import numpy as np

        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + self.OFFSET for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` without special ones; an incomplete character becomes U+FFFD."""
        codes = (int(each) - self.OFFSET for each in ids)
        return bytes(code for code in codes if 0 <= code < 256).decode(errors="replace")


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``, as the ``tokenizers`` library reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = file.resolve().parent.name if file.name == "tokenizer.json" else file.stem
        self.digest = digest.of_file(file)
        self._engine = read_fast(file)
        self.vocab_size = max(self._engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.vocab_size:
            raise DataError(f"{file}: a tokenizer without a token", f"head -c 200 {file}")
        config = _config(file.parent / "tokenizer_config.json")
        end = self._special(config.get("eos_token"), END_NAMES)
        if end is None:
            looked = ", ".join(END_NAMES)
            raise DataError(
                f"{file}: no token for the end of a text (looked for {looked})",
                f'name it in {file.parent / "tokenizer_config.json"} as "eos_token"',
            )
        self.eos_id = end
        self.bos_id = self._special(config.get("bos_token"), BEGIN_NAMES)
        self.add_bos = self._adds_bos(config.get("add_bos_token"))
        added = self._engine.get_added_tokens_decoder()
        self.controls = {str(token.content): int(number) for number, token in added.items() if token.special}
        for each in (self.bos_id, self.eos_id):  # also where the file does not call them special
            if each is not None:
                self.controls.setdefault(str(self._engine.id_to_token(each)), each)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        import numpy as np

        encoded = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, dtype=self.dtype) for each in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._engine.decode([int(each) for each in ids], skip_special_tokens=False))

    def _adds_bos(self, configured: Any) -> bool:
        """``add_bos_token`` as transformers reads it; without it what the post-processor does."""
        if configured is not None and not isinstance(configured, bool):
            raise DataError(f"{self.file}: add_bos_token is not true or false", "edit tokenizer_config.json beside it")
        if configured and self.bos_id is None:
            raise DataError(f"{self.file}: add_bos_token is true, and there is no such token", 'name it as "bos_token"')
        if self.bos_id is None or configured is not None:
            return bool(configured)
        return bool(self._engine.encode("a").ids[:1] == [self.bos_id])

    def _special(self, configured: Any, names: Sequence[str]) -> int | None:
        """The id of the token that the configuration names, else of the first known one of ``names``."""
        if isinstance(configured, dict):
            configured = configured.get("content")
        wanted = [configured] if isinstance(configured, str) and configured.isprintable() else names
        return next((found for each in wanted if (found := self._engine.token_to_id(each)) is not None), None)


def read_fast(file: Path) -> FastTokenizer:
    """A ``tokenizer.json`` as the library reads it: nothing cut off or padded, special tokens in a text read as text.

    Raises :class:`DataError`.
    """
    from tokenizers import Tokenizer as FastTokenizer

    try:
        engine = FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file}: not a tokenizer.json ({first_line(error)})", f"head -c 200 {file}") from None
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = True
    return engine


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: {error}", f"edit {file}") from None
    return config if isinstance(config, dict) else {}
