"""A few samples of text for a model, in its own tokenizer: what two models are compared on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bafogpt.core.errors import ConfigError
from bafogpt.core.settings import Settings
from bafogpt.data import sources, tokenizer
from bafogpt.model.folder import ModelFolder

SAMPLES, TOKENS = 16, 256


def of_text(
    model: ModelFolder, names: Sequence[str], settings: Settings, *, count: int = SAMPLES, tokens: int = TOKENS
) -> list[torch.Tensor]:
    """The first ``count`` samples of the sources' documents put one after the other: [T] int64 each, T at most
    ``tokens`` and the model's positions.

    Raises :class:`ConfigError` where the tokenizer has ids that the model has no row for.
    """
    own = model.path / "tokenizer.json"
    read = tokenizer.load(str(own) if own.is_file() else tokenizer.BYTES)
    if read.vocab_size > model.config.padded_vocab_size:
        rows = model.config.padded_vocab_size
        raise ConfigError(f"{model.path} has {rows:,} rows, its tokenizer {read.vocab_size:,} ids", "expand the model")
    length = min(tokens, model.config.block_size)
    found: list[torch.Tensor] = []
    rest: list[int] = []
    for text in _texts(names, settings):
        (ids,) = read.encode_batch([text])
        rest += [*ids.tolist(), read.eos_id]
        while len(rest) >= length and len(found) < count:
            found.append(torch.tensor(rest[:length]))
            rest = rest[length:]
        if len(found) == count:
            return found
    return [*found, torch.tensor(rest)] if len(rest) > 1 else found


def _texts(names: Sequence[str], settings: Settings) -> Iterator[str]:
    for name in names:
        for document in sources.read_documents(name, settings=settings):
            yield document.text
