"""Tiny Gemma-2 models as transformers makes and saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SIZES: dict[str, Any] = {
    "vocab_size": 320,
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
MakeGemma = Callable[..., Any]
SaveGemma = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def gemma() -> MakeGemma:
    """transformers' Gemma-2 with random weights in which no norm is an identity; ``gemma(**sizes)``."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    def make(seed: int = 0, **sizes: Any) -> Any:
        torch.manual_seed(seed)
        model = Gemma2ForCausalLM(Gemma2Config(**{**SIZES, **sizes}, attn_implementation="eager")).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.normal_(std=0.3)
                else:
                    assert "norm" not in name
                    parameter.normal_(std=0.2)
        return model

    return make


@pytest.fixture
def saved(gemma: MakeGemma, tmp_path: Path) -> SaveGemma:
    """A folder as transformers saves one: ``saved(max_shard_size="20KB", tie_word_embeddings=False, …)``."""

    def save(
        name: str = "theirs", max_shard_size: str = "50GB", dtype: torch.dtype | None = None, **sizes: Any
    ) -> Path:
        model = gemma(**sizes)
        if dtype is not None:
            model = model.to(dtype)
        model.save_pretrained(tmp_path / name, max_shard_size=max_shard_size)
        return tmp_path / name

    return save


def some_ids(vocabulary: int = 320, length: int = 24) -> torch.Tensor:
    """[2, length] int64, longer than the tiny model's window."""
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, V], of transformers' model or litgpt's."""
    found = model(ids)
    return (found if isinstance(found, torch.Tensor) else found.logits).float()
