"""Prompt, then token after token, equals everything at once; past the window too."""

from __future__ import annotations

import pytest
import torch

from bafogpt.core.errors import UsageError
from bafogpt.model.cache import KVCache

from .small_models import small, text

CUTS = {
    "token after token": [1] * 100,
    "a prompt within the window": [10] + [1] * 90,
    "a prompt as long as the window": [16] + [1] * 84,
    "a prompt longer than the window": [70] + [1] * 30,
    "a prompt in parts": [5, 40, 1, 1, 17, 16, 15, 1, 1, 3],
    "more than two windows at a time": [20, 75, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("room", [100, 512])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_with_a_cache_the_logits_are_those_of_everything_at_once(cuts: list[int], room: int) -> None:
    model = small().eval()
    ids = text(2, sum(cuts))
    cache = KVCache(model.config, room)
    with torch.no_grad():
        whole = model(ids)
        parts = torch.cat([model(part, cache=cache) for part in ids.split(cuts, dim=1)], dim=1)
    assert cache.length == 100
    assert (parts - whole).abs().max() <= 1e-5


def test_a_layer_with_a_window_keeps_two_windows_at_most_however_long_the_text() -> None:
    model = small().eval()
    cache = KVCache(model.config, 512)
    with torch.no_grad():
        for part in text(1, 300).split(7, dim=1):
            model(part, cache=cache)
    sizes = [layer.buffers[0].size(2) for layer in cache.layers if layer.buffers is not None]
    assert sizes == [32, 512, 32, 512]


def test_more_tokens_than_the_cache_has_room_for_are_refused_and_leave_it_as_it_was() -> None:
    model = small().eval()
    cache = KVCache(model.config, 10)
    with torch.no_grad():
        model(text(1, 8), cache=cache)
        with pytest.raises(UsageError, match=r"8 \+ 3 tokens do not fit into a cache of 10"):
            model(text(1, 3), cache=cache)
        model(text(1, 2), cache=cache)
    assert cache.length == 10
    with pytest.raises(UsageError, match="a cache of 513 tokens for a model of 512 positions"):
        KVCache(model.config, 513)
