"""Parameter names of Hugging Face and litgpt, and the shape of each.

litgpt concatenates query, key and value of a layer in one matrix: all query heads, then the groups' key heads, then
their value heads (since 0.5; earlier versions interleaved them by group). Hugging Face has three matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from litgpt.config import Config

from bafogpt.core.errors import ConfigError
from bafogpt.model.formats.families import require_family
from bafogpt.model.formats.lazy_tensor import LazyTensor, joined

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"
HF_EMBEDDING = "model.embed_tokens.weight"
HF_HEAD = "lm_head.weight"
QKV = "attn.qkv.weight"
HF_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")

_OUTSIDE = {EMBEDDING: HF_EMBEDDING, "transformer.ln_f.weight": "model.norm.weight", HEAD: HF_HEAD}
_WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")


def bare(name: str) -> str:
    """A parameter's name without the parts that activation checkpointing, ``torch.compile`` or Fabric add."""
    return _WRAPPERS.sub("", name)


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of query, key and value in the fused matrix."""
    groups = config.n_query_groups * config.head_size
    return config.n_head * config.head_size, groups, groups


def shapes(config: Config, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names in the network's order, and the shape of each; no head if it is tied."""
    width, inner, heads = config.n_embd, config.intermediate_size, config.n_head * config.head_size
    of: dict[str, tuple[int, ...]] = {
        "attn.norm_q.weight": (config.head_size,),
        "attn.norm_k.weight": (config.head_size,),
        "attn.proj.weight": (width, heads),
        "mlp.fc_1.weight": (inner, width),
        "mlp.fc_2.weight": (inner, width),
        "mlp.proj.weight": (width, inner),
    }
    rows = zip(HF_QKV, qkv_rows(config), strict=True)
    layer: dict[str, tuple[int, ...]] = {name: (count, width) for name, count in rows}
    layer |= {theirs: of.get(ours, (width,)) for ours, theirs in require_family(config).layer.items()}
    vocabulary = (config.padded_vocab_size, width)
    return {
        HF_EMBEDDING: vocabulary,
        **{f"model.layers.{i}.{name}": shape for i in range(config.n_layer) for name, shape in layer.items()},
        "model.norm.weight": (width,),
        **({} if tied else {HF_HEAD: vocabulary}),
    }


def to_litgpt(weights: Mapping[str, LazyTensor], config: Config) -> dict[str, LazyTensor]:
    """Hugging Face's tensors under litgpt's names, query, key and value fused; without a tied head."""
    layer = require_family(config).layer
    named = {ours: weights[theirs] for ours, theirs in _OUTSIDE.items() if theirs in weights}
    for number in range(config.n_layer):
        theirs = f"model.layers.{number}."
        ours = f"transformer.h.{number}."
        named[ours + QKV] = joined(ours + QKV, [weights[theirs + part] for part in HF_QKV])
        named |= {ours + inner: weights[theirs + outer] for inner, outer in layer.items()}
    return {name: weight.renamed(name) for name, weight in named.items()}


def to_hf(weights: Iterable[LazyTensor], config: Config) -> Iterator[LazyTensor]:
    """litgpt's tensors under Hugging Face's names, the fused matrix split. Raises :class:`ConfigError` for an unknown
    name."""
    family = require_family(config)
    for weight in weights:
        if weight.name in _OUTSIDE:
            yield weight.renamed(_OUTSIDE[weight.name])
            continue
        match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", weight.name)
        if match is None or (match[2] != QKV and match[2] not in family.layer):
            raise ConfigError(f"{family.title} has no parameter '{weight.name}'", "export the model that was trained")
        layer = f"model.layers.{match[1]}."
        if match[2] != QKV:
            yield weight.renamed(layer + family.layer[match[2]])
            continue
        first = 0
        for part, rows in zip(HF_QKV, qkv_rows(config), strict=True):
            yield weight.part(layer + part, first, rows)
            first += rows
