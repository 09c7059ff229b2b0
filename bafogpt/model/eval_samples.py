"""A few samples of text for a model, in its own tokenizer: what it is measured with, and compared on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bafogpt.core.errors import ConfigError, DataError
from bafogpt.core.settings import Settings
from bafogpt.data import curriculum, sources, tokenizer
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.gpt import load_gpt

SAMPLES, TOKENS = 16, 256
TEXT_BYTES = 16_384
ANY_STAGE = curriculum.STAGES[0]
"""For text that does not name its own, which plays no part here."""


def text_samples(
    model: ModelFolder, names: Sequence[str], settings: Settings, *, count: int = SAMPLES, tokens: int = TOKENS
) -> list[torch.Tensor]:
    """The first ``count`` samples of the sources' documents put one after the other: [T] int64 each, T at most
    ``tokens`` and the model's positions. Each begins with ``<bos>`` where the tokenizer adds it.

    Raises :class:`ConfigError` where the tokenizer has ids that the model has no row for.
    """
    read = _tokenizer(model)
    if read.vocab_size > model.config.padded_vocab_size:
        rows = model.config.padded_vocab_size
        raise ConfigError(f"{model.path} has {rows:,} rows, its tokenizer {read.vocab_size:,} ids", "expand the model")
    begin = read.begin
    length = min(tokens, model.config.block_size) - len(begin)
    found: list[torch.Tensor] = []
    rest: list[int] = []
    for text in _texts(names, settings):
        (ids,) = read.encode_batch([text])
        rest += [*ids.tolist(), read.eos_id]
        while len(rest) >= length and len(found) < count:
            found.append(torch.tensor(begin + rest[:length]))
            rest = rest[length:]
        if len(found) == count:
            return found
    return [*found, torch.tensor(begin + rest)] if len(rest) > 1 else found


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """What a model makes of text that it has to predict."""

    tokens: int
    """Predicted ones."""
    loss: float
    """Nats a token."""
    bits_per_byte: float
    """The same by the text's length: models with different tokenizers compare by it."""
    new_tokens: int = 0
    """Predicted tokens that the base has not."""
    new_loss: float | None = None
    """Nats of each of those; None where there is none."""
    old_loss: float | None = None
    """Nats of each of the others."""


def sample_text(names: Sequence[str], settings: Settings, *, language: str = "zul", size: int = TEXT_BYTES) -> str:
    """The first ``size`` bytes of what the sources hold in a language. Raises :class:`DataError` where that is none."""
    found, length = [], 0
    for name in names:
        for document in sources.read_documents(name, ANY_STAGE, settings, language):
            found.append(document.text + "\n")
            length += len(found[-1].encode())
            if length >= size:
                return "".join(found).encode()[:size].decode(errors="ignore")
    if not found:
        raise DataError(
            f"there is no text in '{language}' in {', '.join(names)}", "--text FILE with some held-out text"
        )
    return "".join(found)


@torch.no_grad()
def measure(model: ModelFolder, text: str, *, first_new: int | None = None) -> TextLoss:
    """The loss of a model on ``text``, in pieces of at most 256 tokens; takes the whole model in memory.

    Each piece begins with ``<bos>`` where the tokenizer adds it, else with the last token of the one before. Ids from
    ``first_new`` on are those that the base has not.
    """
    network, read = load_gpt(model), _tokenizer(model)
    (ids,) = read.encode_batch([text])
    begin = torch.tensor(read.begin, dtype=torch.int64)
    whole, length = torch.as_tensor(ids, dtype=torch.int64), min(TOKENS, model.config.block_size)
    own = 1 - len(begin)
    nats, targets = [], []
    for start in range(0, len(whole) - own, length):
        sample = torch.cat([begin, whole[start : start + length + own]])
        logits = network(sample[None, :-1])[0].float()
        nats.append(torch.nn.functional.cross_entropy(logits, sample[1:], reduction="none"))
        targets.append(sample[1:])
    each, new = torch.cat(nats).double(), torch.cat(targets) >= (first_new or model.config.padded_vocab_size)
    return TextLoss(
        tokens=len(each),
        loss=float(each.mean()),
        bits_per_byte=float(each.sum()) / math.log(2) / len(text.encode()),
        new_tokens=int(new.sum()),
        new_loss=float(each[new].mean()) if new.any() else None,
        old_loss=float(each[~new].mean()) if (~new).any() else None,
    )


def _tokenizer(model: ModelFolder) -> Tokenizer:
    own = model.path / "tokenizer.json"
    return tokenizer.load(str(own) if own.is_file() else tokenizer.BYTES)


def _texts(names: Sequence[str], settings: Settings) -> Iterator[str]:
    for name in names:
        for document in sources.read_documents(name, ANY_STAGE, settings):
            yield document.text
