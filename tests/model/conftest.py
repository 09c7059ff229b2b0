"""Folders of tiny Gemma-2 models as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import published

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "sliding_window": 8,
    "query_pre_attn_scalar": 12,
}
SaveGemma = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def saved(tmp_path: Path) -> SaveGemma:
    """``saved("name", max_shard_size="20KB", dtype=…, seed=1, tie_word_embeddings=False, …)``."""

    def save(
        name: str = "theirs",
        max_shard_size: str = "50GB",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **sizes: Any,
    ) -> Path:
        model = published.make("gemma-2-2b", seed, **{**SIZES, **sizes}).to(dtype)
        model.save_pretrained(tmp_path / name, max_shard_size=max_shard_size)
        return tmp_path / name

    return save
