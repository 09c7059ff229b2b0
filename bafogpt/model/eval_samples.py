"""Text samples in a model's tokenizer, to measure its loss and compare models."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
"""For text without a stage, which is not used here."""


def text_samples(
    model: ModelFolder, names: Sequence[str], settings: Settings, *, count: int = SAMPLES, tokens: int = TOKENS
) -> list[torch.Tensor]:
    """The first ``count`` samples of the sources' concatenated documents: [T] int64 each, T at most ``tokens`` and the
    model's positions, with ``<bos>`` where the tokenizer adds it.

    Raises :class:`ConfigError` where the tokenizer has more ids than the model rows.
    """
    read = _tokenizer(model)
    if read.vocab_size > model.config.padded_vocab_size:
        rows = model.config.padded_vocab_size
        raise ConfigError(f"{model.path} has {rows:,} rows, its tokenizer {read.vocab_size:,} ids", "expand the model")
    begin, length = read.begin, min(tokens, model.config.block_size) - len(read.begin)
    found: list[torch.Tensor] = []
    rest: list[int] = []
    texts = (each.text for name in names for each in sources.read_documents(name, ANY_STAGE, settings))
    for text in texts:
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
    """A model's loss on text."""

    tokens: int
    """Predicted tokens."""
    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Comparable between different tokenizers."""
    new_tokens: int = 0
    """Predicted tokens that the base does not have."""
    new_loss: float | None = None
    """Nats per new token; None where there is none."""
    old_loss: float | None = None
    """Nats per other token."""


def sample_text(names: Sequence[str], settings: Settings, *, language: str = "zul", size: int = TEXT_BYTES) -> str:
    """The first ``size`` bytes of the sources' text in a language. Raises :class:`DataError` where there is none."""
    found = b""
    for document in (each for name in names for each in sources.read_documents(name, ANY_STAGE, settings, language)):
        found += document.text.encode() + b"\n"
        if len(found) >= size:
            break
    if not found:
        raise DataError(f"no text in '{language}' in {', '.join(names)}", "--text FILE with held-out text")
    return found[:size].decode(errors="ignore")


@torch.no_grad()
def measure(model: ModelFolder, text: str, *, first_new: int | None = None) -> TextLoss:
    """The loss of a model, loaded into memory, on ``text`` in samples of at most 256 tokens.

    Each sample begins with ``<bos>`` where the tokenizer adds it, else with the last token of the one before. Ids from
    ``first_new`` on are not in the base.
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
