"""Generates tokens after a prompt, and decodes them as a stream of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bafogpt.core.errors import UsageError
from bafogpt.model.cache import KVCache
from bafogpt.model.gpt import GPT

PREFILL_CHUNK = 512
"""Prompt tokens per forward pass: the scores of a long prompt would not fit at once."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is sampled. Raises :class:`UsageError` for values out of range."""

    temperature: float = 1.0
    """0 is greedy; higher is more random."""
    top_k: int | None = None
    """Sample from this many most probable tokens."""
    top_p: float = 1.0
    """Nucleus sampling threshold."""
    seed: int | None = None
    """Random seed; None draws one."""

    def __post_init__(self) -> None:
        usual = "leave it out for the default"
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; from 0 (greedy) to 100", usual)
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; at least 1", usual)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; above 0, at most 1", usual)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; 64 bits at most", usual)


def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    stops: Collection[int] = (),
    vocabulary: int | None = None,
) -> Iterator[int]:
    """Stream up to ``max_tokens`` tokens after ``prompt``; ends after one of ``stops``.

    Ids from ``vocabulary`` on are padding and never sampled. Raises :class:`UsageError` for an empty prompt, and where
    prompt and ``max_tokens`` exceed the model's positions.
    """
    if not prompt:
        raise UsageError("the prompt has no tokens", "give a prompt with text")
    room = model.max_seq_length - len(prompt)
    if not 1 <= max_tokens <= room:
        raise UsageError(
            f"a prompt of {len(prompt)} tokens and an answer of {max_tokens} do not fit into the model's "
            f"{model.max_seq_length} positions",
            f"ask for 1 to {room} tokens" if room > 0 else "shorten the prompt",
        )
    return _generate(model, prompt, max_tokens, sampling, frozenset(stops), vocabulary)


@torch.no_grad()
def _generate(
    model: GPT,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    stops: frozenset[int],
    vocabulary: int | None,
) -> Iterator[int]:
    device = model.lm_head.weight.device
    cache = KVCache(model.config, len(prompt) + max_tokens)
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    ids = torch.tensor([prompt], device=device)
    for count in range(max_tokens):
        for part in torch.split(ids, PREFILL_CHUNK, dim=1):
            hidden = model.hidden(part, cache=cache)
        logits = model.logits(hidden[0, -1])[:vocabulary].float()
        token = choose(logits, sampling, generator)
        yield token
        if token in stops or count + 1 == max_tokens:
            return
        ids = torch.tensor([[token]], device=device)


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token by its logits [V], float32."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / max(sampling.temperature, 1e-4)
    order = None
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits, order = logits.topk(sampling.top_k)
    if sampling.top_p < 1:
        logits, by_size = logits.sort(descending=True, stable=True)
        order = by_size if order is None else order[by_size]
        before = logits.softmax(-1).cumsum(-1).roll(1)
        before[0] = 0.0
        logits = logits[before < sampling.top_p]
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return int(drawn if order is None else order[drawn])


class TextStream:
    """Decodes a stream of tokens: never emits part of a character or of a stop string.

    A character may span several tokens, and a token's text may depend on the one before it. So the new text is the
    difference between decoding with and without the newest tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Iterable[str] = ()) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._known: list[int] = []
        """The last tokens whose text was emitted."""
        self._new: list[int] = []
        self._held = ""
        """Text that may begin a stop string."""
        self.stopped = False
        """Whether a stop string has been met."""

    def push(self, token: int) -> str:
        """Add a token; return the text that can be emitted now."""
        self._new.append(token)
        text = self._decode(self._known + self._new)
        if text.endswith("\ufffd"):
            return ""
        return self._certain(text[len(self._decode(self._known)) :])

    def finish(self) -> str:
        """The remaining text; an incomplete character becomes U+FFFD."""
        text = self._certain(self._decode(self._known + self._new)[len(self._decode(self._known)) :])
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _certain(self, text: str) -> str:
        if self._new:
            self._known, self._new = self._new, []
        text = self._held + text
        self._held = ""
        found = min((place for each in self._stop if (place := text.find(each)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            return text[:found]
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(each.startswith(text[-size:]) for each in self._stop):
                self._held = text[-size:]
                return text[:-size]
        return text
