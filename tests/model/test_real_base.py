"""Real weights of Gemma-3-270M against transformers, in a folder that ``BAFOGPT_REAL_BASE`` names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bafogpt.model.cache import KVCache
from bafogpt.model.folder import ModelFolder
from bafogpt.model.gpt import load_gpt

BASE = os.environ.get("BAFOGPT_REAL_BASE", "")
WINDOW = 512
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BASE, reason="BAFOGPT_REAL_BASE names no folder with Gemma-3-270M's weights"),
]


@pytest.mark.parametrize("tokens", [16, WINDOW + 1, 640])
def test_the_real_bases_logits_are_those_of_transformers(tokens: int) -> None:
    """In float32, below and past the window, at once and with the cache; logits of this text reach 55."""
    from transformers import AutoModelForCausalLM

    folder = ModelFolder.open(Path(BASE))
    assert (folder.config.name, folder.config.sliding_window_size) == ("Gemma-3-270m", WINDOW)
    # in float32 from the start: read as bfloat16, transformers keeps the embedding's scale rounded to 25.25
    theirs = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation="eager", dtype=torch.float32).eval()
    ours = load_gpt(folder, dtype=torch.float32)
    engine = Tokenizer.from_file(f"{BASE}/tokenizer.json")
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = torch.tensor([[2, *engine.encode(text, add_special_tokens=False).ids][:tokens]])  # <bos> first
    cache = KVCache(folder.config, tokens)
    with torch.no_grad():
        expected, plain = theirs(ids).logits, ours(ids)
        parts = [ids[:, :-8], *ids[:, -8:].split(1, dim=1)]
        cached = torch.cat([ours(part, cache=cache) for part in parts], dim=1)

    assert ids.shape == (1, tokens)
    for found in (plain, cached):
        assert (found - expected).abs().max() <= 1e-4
        assert torch.equal(found.argmax(-1), expected.argmax(-1))
