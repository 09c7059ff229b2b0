"""Frozen matrices in 4 bits: NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), on CPU and
GPU alike.

litgpt and Lightning refuse to quantise without CUDA, and swap the embedding for one with a norm that is gone after
the merge. So the layers are swapped here: bitsandbytes' own parameter and its matrix product; embedding and head stay
as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it asks for a package that is not needed

import bitsandbytes  # noqa: E402
from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: E402


class NF4Linear(Linear4bit):
    """A linear map whose matrix is NF4.

    The forward pass is bitsandbytes' product and nothing else: its own layer repacks the weights on some CPUs when it
    evaluates, and they would not be the same bits afterwards.
    """

    weight: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out], in ``x``'s dtype."""
        y: torch.Tensor = bitsandbytes.matmul_4bit(x, self.weight, bias=self.bias, quant_state=self.weight.quant_state)
        return y

    @classmethod
    def of(cls, linear: nn.Linear) -> NF4Linear:
        """``linear`` quantised, on the device where it is; the fifth of the memory, without a gradient."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False, compress_statistics=True, quant_type="nf4")
        weight: Any = Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        made.weight = weight.to(linear.weight.device)
        made.bias = None if linear.bias is None else nn.Parameter(linear.bias.data, requires_grad=False)
        return made


def quantise(model: Any) -> int:
    """Make every matrix within the network's blocks NF4. Returns how many; embedding, head and norms stay."""
    found = list(_linears(model.transformer.h))
    for parent, name, linear in found:
        setattr(parent, name, NF4Linear.of(linear))
    return len(found)


def dequantised(linear: NF4Linear) -> torch.Tensor:
    """The matrix that is computed with, [out, in], in the dtype that it had."""
    matrix: torch.Tensor = bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return matrix


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in root.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and not isinstance(child, Linear4bit):
                yield parent, name, child
