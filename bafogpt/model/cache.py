"""The key-value cache for generation.

A layer with a sliding window keeps only the keys that its window can still reach. A layer returns keys in the order of
the text, ending with the newest token, so one mask serves every layer of a kind.
"""

from __future__ import annotations

import torch
from litgpt.config import Config

from bafogpt.core.errors import UsageError


def windows(config: Config) -> list[int | None]:
    """Each layer's sliding window in tokens, including its own token; None for a layer without one."""
    if config.sliding_window_size is None or config.sliding_window_indices is None:
        return [None] * config.n_layer
    return [config.sliding_window_size if flag else None for flag in config.sliding_window_indices]


class KVCache:
    """Keys and values of every layer for one batch of sequences, of up to ``max_tokens`` tokens each."""

    def __init__(self, config: Config, max_tokens: int) -> None:
        if max_tokens > config.block_size:
            raise UsageError(
                f"a cache of {max_tokens} tokens for a model of {config.block_size} positions",
                f"ask for {config.block_size} or fewer",
            )
        self.max_tokens = max_tokens
        self.length = 0
        """Tokens in the cache."""
        self.layers = [LayerCache(max_tokens, window) for window in windows(config)]

    def require_room(self, tokens: int) -> None:
        """Raise :class:`UsageError` when ``tokens`` more do not fit."""
        if self.length + tokens > self.max_tokens:
            raise UsageError(
                f"{self.length} + {tokens} tokens do not fit into a cache of {self.max_tokens}",
                "shorten the prompt or the answer",
            )


class LayerCache:
    """One layer's keys and values, [B, groups, tokens, head] each, in a buffer allocated at first use.

    With a window the buffer holds twice its size, and the older half is dropped when it is full, so not every token
    copies the window.
    """

    def __init__(self, max_tokens: int, window: int | None) -> None:
        self.size = min(max_tokens, 2 * window) if window else max_tokens
        self.reach = window - 1 if window else max_tokens
        """Earlier tokens that the next one attends to."""
        self.start = self.end = 0
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of T tokens; return them after the earlier ones that they attend to."""
        if self.buffers is None:
            shape = (*keys.shape[:2], self.size, keys.size(3))
            self.buffers = (keys.new_empty(shape), values.new_empty((*shape[:3], values.size(3))))
        self.start = max(self.start, self.end - self.reach)
        count, kept = keys.size(2), self.end - self.start
        if self.end + count > self.size:
            tails = [buffer[:, :, self.start : self.end].clone() for buffer in self.buffers]
            if kept + count > self.size:  # longer than the window: return all, keep a part
                whole = [torch.cat(pair, dim=2) for pair in zip(tails, (keys, values), strict=True)]
                self.start, self.end = 0, self.reach
                for buffer, new in zip(self.buffers, whole, strict=True):
                    buffer[:, :, : self.reach] = new[:, :, new.size(2) - self.reach :]
                return whole[0], whole[1]
            for buffer, tail in zip(self.buffers, tails, strict=True):
                buffer[:, :, :kept] = tail
            self.start, self.end = 0, kept
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, self.end : self.end + count] = new
        self.end += count
        return self.buffers[0][:, :, self.start : self.end], self.buffers[1][:, :, self.start : self.end]
