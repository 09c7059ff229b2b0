"""Frozen matrices in 4 bits: NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), on CPU and
GPU.

litgpt and Lightning quantise only with CUDA, and replace the embedding by one with a norm that is lost in the merge. So
the linear layers are replaced here, with bitsandbytes' parameter and matrix product; embedding and head are unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it suggests a package that is not needed

import bitsandbytes  # noqa: E402
from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: E402


class NF4Linear(Linear4bit):
    """A linear layer whose matrix is NF4.

    The forward pass is only bitsandbytes' product: its own layer repacks the weights on some CPUs in evaluation, which
    changes their bits.
    """

    weight: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out], in ``x``'s dtype."""
        y: torch.Tensor = bitsandbytes.matmul_4bit(x, self.weight, bias=self.bias, quant_state=self.weight.quant_state)
        return y

    @classmethod
    def of(cls, linear: nn.Linear) -> NF4Linear:
        """``linear`` quantised on its device, without a gradient."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False, compress_statistics=True, quant_type="nf4")
        weight: Any = Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        made.weight = weight.to(linear.weight.device)
        made.bias = None if linear.bias is None else nn.Parameter(linear.bias.data, requires_grad=False)
        return made


def quantise(model: Any) -> int:
    """Quantise every linear layer in the network's blocks; return how many."""
    found = list(_linears(model.transformer.h))
    for parent, name, linear in found:
        setattr(parent, name, NF4Linear.of(linear))
    return len(found)


def dequantised(linear: NF4Linear) -> torch.Tensor:
    """The matrix used in computation, [out, in], in its original dtype."""
    matrix: torch.Tensor = bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return matrix


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in root.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and not isinstance(child, Linear4bit):
                yield parent, name, child
