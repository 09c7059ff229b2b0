"""Parameter names: Hugging Face's Gemma-2 and litgpt's, and the shape that a configuration gives each.

litgpt keeps query, key and value of a layer in one matrix, under each other: all query heads, then the key heads, then
the value heads of the groups (0.5 on; earlier versions interleaved them by group). Hugging Face has three matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from litgpt.config import Config

from bafogpt.core.errors import ConfigError
from bafogpt.model.weights import Weight, joined

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"
HF_EMBEDDING = "model.embed_tokens.weight"
HF_HEAD = "lm_head.weight"
QKV = "attn.qkv.weight"
HF_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")

_OUTSIDE = {EMBEDDING: HF_EMBEDDING, "transformer.ln_f.weight": "model.norm.weight", HEAD: HF_HEAD}
_INSIDE = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "norm_2.weight": "pre_feedforward_layernorm.weight",
    "mlp.fc_1.weight": "mlp.gate_proj.weight",
    "mlp.fc_2.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
    "post_mlp_norm.weight": "post_feedforward_layernorm.weight",
}
"""Within a layer: litgpt's ``transformer.h.N.`` and Hugging Face's ``model.layers.N.``; the fused matrix is apart."""
_WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")


def bare(name: str) -> str:
    """A parameter's name without what activation checkpointing, ``torch.compile`` or Fabric put into it."""
    return _WRAPPERS.sub("", name)


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of query, key and value in the fused matrix."""
    groups = config.n_query_groups * config.head_size
    return config.n_head * config.head_size, groups, groups


def shapes(config: Config, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names, in the network's order, and the shape that each must have; no head where it is tied."""
    width, inner, heads = config.n_embd, config.intermediate_size, config.n_head * config.head_size
    rows = dict(zip(HF_QKV, qkv_rows(config), strict=True))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        **{name: (count, width) for name, count in rows.items()},
        "self_attn.o_proj.weight": (width, heads),
        "post_attention_layernorm.weight": (width,),
        "pre_feedforward_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "post_feedforward_layernorm.weight": (width,),
    }
    vocabulary = (config.padded_vocab_size, width)
    return {
        HF_EMBEDDING: vocabulary,
        **{f"model.layers.{i}.{name}": shape for i in range(config.n_layer) for name, shape in layer.items()},
        "model.norm.weight": (width,),
        **({} if tied else {HF_HEAD: vocabulary}),
    }


def to_litgpt(weights: Mapping[str, Weight], config: Config) -> dict[str, Weight]:
    """Hugging Face's tensors under litgpt's names, query, key and value fused; a tied head stays left out."""
    named = {ours: weights[theirs] for ours, theirs in _OUTSIDE.items() if theirs in weights}
    for number in range(config.n_layer):
        theirs = f"model.layers.{number}."
        ours = f"transformer.h.{number}."
        named[ours + QKV] = joined(ours + QKV, [weights[theirs + part] for part in HF_QKV])
        named |= {ours + inner: weights[theirs + outer] for inner, outer in _INSIDE.items()}
    return {name: weight.renamed(name) for name, weight in named.items()}


def to_hf(weights: Iterable[Weight], config: Config) -> Iterator[Weight]:
    """litgpt's tensors under Hugging Face's names, the fused matrix cut in three.

    Raises :class:`ConfigError` for a name that Gemma-2 does not have.
    """
    for weight in weights:
        if weight.name in _OUTSIDE:
            yield weight.renamed(_OUTSIDE[weight.name])
            continue
        match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", weight.name)
        if match is None or (match[2] != QKV and match[2] not in _INSIDE):
            raise ConfigError(f"Gemma-2 has no parameter '{weight.name}'", "export a model of the Gemma-2 family")
        layer = f"model.layers.{match[1]}."
        if match[2] != QKV:
            yield weight.renamed(layer + _INSIDE[match[2]])
            continue
        first = 0
        for part, rows in zip(HF_QKV, qkv_rows(config), strict=True):
            yield weight.part(layer + part, first, rows)
            first += rows
