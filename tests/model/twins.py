"""Small Gemma-2s: ours and transformers', with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from litgpt.config import Config

from bafogpt.model.config import gpt_config
from bafogpt.model.gpt import GPT, new_gpt

SMALL: dict[str, Any] = {
    "n_layer": 4,
    "n_embd": 48,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 16,
    "intermediate_size": 96,
    "sliding_window_size": 16,
    "attention_scores_scalar": 24,
    "block_size": 512,
}
VOCABULARY = 320


def small(seed: int = 1, tied: bool = True, **overrides: Any) -> GPT:
    """A model of 0.1 M parameters whose weights are large enough for the soft-caps to bend."""
    config = gpt_config("Gemma-2-2b", {**SMALL, **overrides}, VOCABULARY)
    model = new_gpt(config, tie_embeddings=tied, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.dim() == 1 else 0.15
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if "post" in name:
                weight -= 0.5
    return model


def text(batch: int, tokens: int, seed: int = 7) -> torch.Tensor:
    """Random ids, [batch, tokens] int64."""
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def as_gemma(model: GPT, tied: bool = True) -> Any:
    """transformers' Gemma-2 with the weights of ``model``, by names written down here once more."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config: Config = model.config
    theirs = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=config.padded_vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_query_groups,
            head_dim=config.head_size,
            query_pre_attn_scalar=config.attention_scores_scalar,
            sliding_window=config.sliding_window_size,
            max_position_embeddings=config.block_size,
            rms_norm_eps=1e-6,
            tie_word_embeddings=tied,
            attn_implementation="eager",
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    state = {
        "model.embed_tokens.weight": model.transformer.wte.weight,
        "model.norm.weight": model.transformer.ln_f.weight,
    }
    state["lm_head.weight"] = model.lm_head.weight
    sizes = [heads * config.head_size for heads in (config.n_head, config.n_query_groups, config.n_query_groups)]
    for index, block in enumerate(model.transformer.h):
        own = f"model.layers.{index}."
        parts = block.attn.qkv.weight.split(sizes)
        state |= {f"{own}self_attn.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        state |= {
            f"{own}self_attn.o_proj.weight": block.attn.proj.weight,
            f"{own}mlp.gate_proj.weight": block.mlp.fc_1.weight,
            f"{own}mlp.up_proj.weight": block.mlp.fc_2.weight,
            f"{own}mlp.down_proj.weight": block.mlp.proj.weight,
            f"{own}input_layernorm.weight": block.norm_1.weight,
            f"{own}post_attention_layernorm.weight": block.post_attention_norm.weight,
            f"{own}pre_feedforward_layernorm.weight": block.norm_2.weight,
            f"{own}post_feedforward_layernorm.weight": block.post_mlp_norm.weight,
        }
    theirs.load_state_dict({name: weight.detach().clone() for name, weight in state.items()})
    return theirs
