"""Small models with the shape of every published size, as transformers makes and saves them.

Heads, head sizes, scale of the scores, soft-caps and rotary positions are the published ones; width and MLP are a
32nd, and 7 layers hold one layer of each kind. The window is 16 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320
# width, query heads, key heads, head size, MLP, scale of the scores, factor of the rotary positions
_SIZES: dict[str, tuple[int, int, int, int, int, int, float | None]] = {
    "gemma-2-2b": (2304, 8, 4, 256, 9216, 256, None),
    "gemma-2-9b": (3584, 16, 8, 256, 14336, 256, None),
    "gemma-2-27b": (4608, 32, 16, 128, 36864, 144, None),
    "gemma-3-270m": (640, 4, 1, 256, 2048, 256, None),
    "gemma-3-1b": (1152, 4, 1, 256, 6912, 256, None),
    "gemma-3-4b": (2560, 8, 4, 256, 10240, 256, 8.0),
    "gemma-3-12b": (3840, 16, 8, 256, 15360, 256, 8.0),
    "gemma-3-27b": (5376, 32, 16, 128, 21504, 168, 8.0),
    "qwen3-0.6b": (1024, 16, 8, 128, 3072, 128, None),
    "qwen3-4b": (2560, 32, 8, 128, 9728, 128, None),
}
PUBLISHED = tuple(_SIZES)


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """transformers' model of that shape with random weights in which no norm is an identity."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, heads, groups, head, inner, scalar, factor = _SIZES[name]
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width // 32,
        "intermediate_size": inner // 32,
        "num_hidden_layers": 7,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    kind = {"gemma-2": "gemma2", "gemma-3": "gemma3_text", "qwen3-0": "qwen3", "qwen3-4": "qwen3"}[name[:7]]
    if kind != "qwen3":
        sizes |= {"sliding_window": 16, "query_pre_attn_scalar": scalar}
    else:
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if factor:
        sizes["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0 if kind == "qwen3" else 0.0, std=0.3)
            else:
                assert "norm" not in name_
                parameter.normal_(std=0.2)
    return model


def save(path: Path, name: str, **changes: Any) -> Path:
    """The folder of such a model."""
    make(name, **changes).save_pretrained(path)
    return path


def load(path: Path) -> Any:
    """A folder's model as transformers reads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
