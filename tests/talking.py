"""A tiny model folder that talks nonsense: transformers' Gemma-2 with a tokenizer of bytes and Gemma's turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CONTROLS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]


def make_model(folder: Path, **sizes: Any) -> Path:
    """Write it. Its tokenizer knows every text; ids 261 to 319 are padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(3)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "sliding_window": 16,
        "query_pre_attn_scalar": 12,
    }
    model = Gemma2ForCausalLM(Gemma2Config(**{**shape, **sizes}))
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*CONTROLS, *letters])}
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(CONTROLS)
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    return folder
