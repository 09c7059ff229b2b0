"""Real weights of Gemma-3-270M against transformers, in a folder that ``BAFOGPT_REAL_BASE`` names."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bafogpt.data.vocabulary.extend import ExtendOptions, extend
from bafogpt.model import eval_samples
from bafogpt.model.cache import KVCache
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.gpt import load_gpt
from bafogpt.model.resize_embeddings import expand

SHARED = Path(os.environ.get("BAFOGPT_SHARED", Path(__file__).parents[3] / "shared"))
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


def test_rows_of_subtokens_cost_little_before_training(tmp_path: Path) -> None:
    """In bits a byte on NTREX: isiZulu within 0.25 of the base that is not expanded, English within 0.005."""
    if not (SHARED / "data" / "zulu").is_dir():
        pytest.skip("the real corpus is not beside the repository (BAFOGPT_SHARED names its place)")
    corpus = [str(SHARED / "data" / "zulu" / "corpus" / f"{name}.jsonl.gz") for name in ("news_vukuzenzele", "web_ast")]
    english = str(SHARED / "data" / "zulu" / "corpus" / "english_replay_wikipedia.jsonl.gz")
    extend(BASE, corpus, [english], tmp_path / "tokenizer", options=ExtendOptions(pieces=2047))
    expand(Path(BASE), tmp_path / "tokenizer", tmp_path / "expanded")
    with gzip.open(SHARED / "data" / "zulu" / "eval" / "ntrex_eng_zul.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file][:40]

    for language, most in (("zul", 0.25), ("eng", 0.005)):
        text = "\n".join(pair[language] for pair in pairs)
        before, after = (
            eval_samples.measure(ModelFolder.open(each), text, first_new=262_145)
            for each in (Path(BASE), tmp_path / "expanded")
        )
        print(f"{language}: {before.bits_per_byte:.4f} bits a byte before, {after.bits_per_byte:.4f} after")
        assert abs(after.bits_per_byte - before.bits_per_byte) <= most
        assert (after.new_tokens > 100) == (language == "zul")
