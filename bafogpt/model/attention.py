"""Causal attention with soft-capped scores, sliding windows and packed documents.

litgpt's attention adds a boolean mask to the scores when there is a cache, so prompt tokens attend to later ones; it
builds the window's mask in a Python loop in every layer, and keeps four [T, T] tensors per head for the backward pass.
Here the masks are computed once per forward pass (:class:`AttentionMasks`) and one such tensor is kept; flex_attention
on a GPU keeps none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import CausalSelfAttention, apply_rope, apply_rope_interleave
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask

from bafogpt.model.cache import KVCache
from bafogpt.model.flex import flex_attend, flex_mask

QUERY_CHUNK = 256
"""Queries per chunk; each chunk skips the keys that none of its queries attends to."""


@dataclass(frozen=True)
class AttentionMasks:
    """Masks and rotary angles of one forward pass, shared by all layers.

    Deliberately not a tensor or a container of tensors: FSDP would cast the angles to bfloat16 with its inputs.
    """

    cos: torch.Tensor
    """[1, T, rotated], as :func:`litgpt.model.apply_rope` takes it."""
    sin: torch.Tensor
    full: torch.Tensor | BlockMask | None
    """For layers without a window: bool [B or 1, 1, T, S], true where a key is hidden from a query; a mask of
    flex_attention; or None where nothing is hidden."""
    window: torch.Tensor | BlockMask | None
    """For layers with a sliding window."""
    cache: KVCache | None = None


def make_masks(
    config: Config,
    cos: torch.Tensor,
    sin: torch.Tensor,
    tokens: int,
    documents: torch.Tensor | None,
    cache: KVCache | None,
) -> AttentionMasks:
    """Masks for ``tokens`` tokens after those in ``cache``; ``cos`` and ``sin`` are [positions, rotated, …]."""
    before, size = (cache.length if cache else 0), config.sliding_window_size
    device = cos.device
    angles = cos[before : before + tokens].unsqueeze(0), sin[before : before + tokens].unsqueeze(0)
    if device.type == "cuda" and cache is None:
        flex = flex_mask(tokens, None, documents=documents, device=device)
        if not size or tokens <= size:
            return AttentionMasks(*angles, flex, flex)
        return AttentionMasks(*angles, flex, flex_mask(tokens, size, documents=documents, device=device))
    full = hidden_keys(tokens, before, None, documents, device)
    if not size or before + tokens <= size:
        return AttentionMasks(*angles, full, full, cache)
    # a layer with a window caches only the keys that its next token can attend to
    return AttentionMasks(*angles, full, hidden_keys(tokens, min(before, size - 1), size, documents, device), cache)


def hidden_keys(
    tokens: int, before: int, window: int | None, documents: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Bool [B or 1, 1, tokens, before + tokens], true where a key is hidden; None for one query that sees all keys."""
    if tokens == 1 and (window is None or before < window):
        return None
    queries = torch.arange(before, before + tokens, device=device).unsqueeze(1)
    keys = torch.arange(before + tokens, device=device)
    hidden = keys > queries
    if window is not None:
        hidden |= queries - keys >= window
    if documents is None:
        return hidden[None, None]
    return (hidden | (documents.unsqueeze(2) != documents.unsqueeze(1))).unsqueeze(1)


class Attention(CausalSelfAttention):  # type: ignore[misc]
    """litgpt's attention with its parameters, computed differently."""

    rope_kind: int | None
    """Which set of angles, where local and global layers differ (Gemma-3)."""

    def forward(self, x: torch.Tensor, cos: None, sin: None, masks: AttentionMasks, *_: None) -> torch.Tensor:
        """Attend over ``x`` [B, T, C]. ``cos`` and ``sin`` are parameters of litgpt's block, unused here."""
        config = self.config
        batch, tokens, _width = x.size()
        heads, groups, size = config.n_head, config.n_query_groups, config.head_size
        q, k, v = self.qkv(x).split((heads * size, groups * size, groups * size), dim=-1)
        if config.norm_qk and config.norm_qk_type == "olmo2":
            q, k = self.norm_q(q), self.norm_k(k)
        q = q.view(batch, tokens, heads, size).transpose(1, 2)
        k = k.view(batch, tokens, groups, size).transpose(1, 2)
        v = v.view(batch, tokens, groups, size).transpose(1, 2)
        if config.norm_qk and config.norm_qk_type == "default":
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = self._rotated(q, masks), self._rotated(k, masks)
        if masks.cache is not None:
            k, v = masks.cache.layers[self.block_idx].append(k, v)
        mask = masks.window if self.apply_sliding_window_attention else masks.full
        y = attend(q, k, v, mask, scale=self._scale(), softcap=config.attention_logit_softcapping)
        y = y.transpose(1, 2).reshape(batch, tokens, heads * size)
        projected: torch.Tensor = self.proj(y)
        return projected

    def _rotated(self, x: torch.Tensor, masks: AttentionMasks) -> torch.Tensor:
        cos, sin, size = masks.cos, masks.sin, self.config.rope_n_elem
        if self.rope_kind is not None:
            cos, sin = cos[..., self.rope_kind], sin[..., self.rope_kind]
        rotate = apply_rope_interleave if self.config.rope_interleave else apply_rope
        rotated: torch.Tensor = rotate(x[..., :size], cos, sin)
        return rotated if size == x.size(-1) else torch.cat((rotated, x[..., size:]), dim=-1)

    def _scale(self) -> float:
        scalar = self.config.attention_scores_scalar or self.config.head_size
        return float(self.mscale * self.mscale) / math.sqrt(scalar)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | BlockMask | None,
    *,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of ``q`` [B, heads, T, size] over ``k`` and ``v`` [B, groups, S, size]: [B, heads, T, size].

    Scores are scaled, capped to ``softcap · tanh(score / softcap)`` where there is one, and masked.
    """
    if isinstance(mask, BlockMask):
        return flex_attend(q, k, v, mask, scale=scale, softcap=softcap)
    if softcap is None:
        visible = None if mask is None else ~mask
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scale, enable_gqa=True
        )
    attended: torch.Tensor = _SoftCapped.apply(q, k, v, mask, scale, softcap, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return attended


class _SoftCapped(torch.autograd.Function):
    """softmax(mask(c · tanh(q kᵀ · scale / c))) v, one chunk of queries at a time.

    Only the tanh of each chunk is kept for the backward pass, which recomputes the probabilities from it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        softcap: float,
        keep: bool,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        grouped, grouped_out = _grouped(q, k), _grouped(out, k)
        kept = []
        with torch.autocast(q.device.type, enabled=False):
            for here, seen in _chunks(q.size(2), k.size(2)):
                tanh = _rows(grouped, here) @ k[:, :, seen].mT
                # not in place: selective activation checkpointing may have kept the product itself
                tanh = tanh.float().mul(scale / softcap).tanh_()
                p = _probabilities(tanh, mask, here, seen, softcap)
                grouped_out[:, :, :, here] = _heads(p.to(v.dtype) @ v[:, :, seen], here)
                if keep:
                    kept.append(tanh)
        ctx.save_for_backward(q, k, v, mask, out, *kept)
        ctx.scale, ctx.softcap = scale, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, mask, out, *kept = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grouped, grouped_grad, grouped_grad_q = _grouped(q, k), _grouped(grad, k), _grouped(grad_q, k)
        # Σ over keys of p · dp, without p: the row of the gradient times that of the result (FlashAttention)
        delta = _grouped((grad * out).float().sum(-1, keepdim=True), k)
        for (here, seen), tanh in zip(_chunks(q.size(2), k.size(2)), kept, strict=True):
            rows, grad_rows = _rows(grouped, here), _rows(grouped_grad, here)
            p = _probabilities(tanh, mask, here, seen, ctx.softcap)
            grad_v[:, :, seen] += p.to(v.dtype).mT @ grad_rows
            scores = (grad_rows @ v[:, :, seen].mT).float().sub_(_rows(delta, here)).mul_(p)
            scores.mul_(torch.addcmul(torch.ones((), device=q.device), tanh, tanh, value=-1.0)).mul_(ctx.scale)
            scores = scores.to(q.dtype)
            grouped_grad_q[:, :, :, here] = _heads(scores @ k[:, :, seen], here)
            grad_k[:, :, seen] += scores.mT @ rows
        return grad_q, grad_k, grad_v, None, None, None, None


def _chunks(tokens: int, keys: int) -> list[tuple[slice, slice]]:
    """Chunks of queries, each with the keys up to its last query."""
    before = keys - tokens
    ends = [min(start + QUERY_CHUNK, tokens) for start in range(0, tokens, QUERY_CHUNK)]
    return [(slice(i * QUERY_CHUNK, end), slice(0, before + end)) for i, end in enumerate(ends)]


def _grouped(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[B, heads, T, …] as [B, groups, heads / groups, T, …]."""
    groups = k.size(1)
    return x.view(x.size(0), groups, x.size(1) // groups, *x.shape[2:])


def _rows(grouped: torch.Tensor, here: slice) -> torch.Tensor:
    """A chunk of queries as [B, groups, heads / groups · chunk, size]: one matrix product per group."""
    return grouped[:, :, :, here].flatten(2, 3)


def _heads(rows: torch.Tensor, here: slice) -> torch.Tensor:
    """The inverse of :func:`_rows`: [B, groups, heads / groups, chunk, …], a view."""
    return rows.view(*rows.shape[:2], -1, here.stop - here.start, rows.size(3))


def _probabilities(
    tanh: torch.Tensor, mask: torch.Tensor | None, here: slice, seen: slice, softcap: float
) -> torch.Tensor:
    """Softmax over keys of the capped scores of ``tanh`` [B, groups, rows, keys]; float32."""
    scores = tanh * softcap
    if mask is not None:
        _heads(scores, here).masked_fill_(mask[:, :, None, here, seen], -math.inf)
    return torch.softmax(scores, dim=-1)
