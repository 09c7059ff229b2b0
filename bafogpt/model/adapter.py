"""An adapter's settings, and PEFT's names and configuration for it. Imports no torch.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds ``alpha / r · B A`` to a frozen matrix, A [r, in], B [out, r].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, CorruptError, NotFoundError, did_you_mean

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

TARGETS: dict[str, tuple[tuple[str, str], ...]] = {
    "query": (("attn.qkv.lora.query", "self_attn.q_proj"),),
    "key": (("attn.qkv.lora.key", "self_attn.k_proj"),),
    "value": (("attn.qkv.lora.value", "self_attn.v_proj"),),
    "projection": (("attn.proj.lora.projection", "self_attn.o_proj"),),
    "mlp": (
        ("mlp.fc_1.lora.mlp", "mlp.gate_proj"),
        ("mlp.fc_2.lora.mlp", "mlp.up_proj"),
        ("mlp.proj.lora.mlp", "mlp.down_proj"),
    ),
    "head": (("lm_head.lora.head", "lm_head"),),
    "embedding": (("transformer.wte.lora.embedding", "model.embed_tokens"),),
}
"""Each target's modules: ours, and Hugging Face's. Those of the first five are within a layer."""
OUTSIDE = ("head", "embedding")
ATTENTION = ("query", "key", "value", "projection")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA fine-tuning: low-rank pairs are trained while the base model is frozen. Raises ValueError."""

    r: int = 16
    """Rank of each pair of matrices."""
    alpha: float = 32.0
    """The update is scaled by ``alpha / r``."""
    dropout: float = 0.05
    """Dropout on a pair's input."""
    targets: tuple[str, ...] = ATTENTION
    """Which matrices get a pair: ``query``, ``key``, ``value``, ``projection``, ``mlp``, ``head``, ``embedding``."""
    base: Literal["nf4", "bf16", "as-is"] = "nf4"
    """Format of the frozen base: 4-bit NormalFloat with double quantisation (QLoRA; embedding and head keep their
    format), bfloat16, or unchanged."""
    neftune: float = 0.0
    """Size α of uniform noise on the embedding's output in training, α/√(T·C) (Jain et al. 2023, arXiv:2310.05914)."""

    def __post_init__(self) -> None:
        for name in self.targets:
            if name not in TARGETS:
                raise ValueError(f"no target module '{name}'{did_you_mean(name, TARGETS)}; one of {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError("targets are empty, or name one twice")
        if self.r < 1:
            raise ValueError(f"r is {self.r}; at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}; must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; in [0, 1)")
        if self.neftune < 0:
            raise ValueError(f"neftune is {self.neftune}; at least 0")

    @property
    def scaling(self) -> float:
        """Factor of B A."""
        return self.alpha / self.r


def peft_names(config: AdapterConfig, layers: int) -> dict[str, str]:
    """Our name of each adapter tensor → PEFT's, in the order of the targets."""
    names = {}
    for target in config.targets:
        for ours, theirs in TARGETS[target]:
            where = [(f"transformer.h.{i}.", f"model.layers.{i}.") for i in range(layers)]
            for before, under in [("", "")] if target in OUTSIDE else where:
                for part in ("A", "B"):
                    kind = f"lora_embedding_{part}" if target == "embedding" else f"lora_{part}.weight"
                    names[f"{before}{ours}.{part}"] = f"base_model.model.{under}{theirs}.{kind}"
    return names


def to_peft(config: AdapterConfig, base: str) -> dict[str, Any]:
    """``adapter_config.json`` for PEFT. ``base`` is the name or path of the base model."""
    modules = [theirs.rpartition(".")[2] for target in config.targets for _, theirs in TARGETS[target]]
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }


def from_peft(content: Mapping[str, Any], where: str) -> AdapterConfig:
    """The settings in an ``adapter_config.json``.

    Raises :class:`ConfigError` for anything but plain LoRA, and for a target of which modules are missing.
    """
    if content.get("peft_type") != "LORA" or content.get("use_dora") or content.get("use_rslora"):
        raise ConfigError(
            f"{where}: not plain LoRA ({content.get('peft_type')})", "train an adapter with peft_type LORA"
        )
    given = content.get("target_modules")
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"{where}: target_modules is not a list of modules' names", f"edit {where}")
    known = {theirs.rpartition(".")[2]: target for target, pairs in TARGETS.items() for _, theirs in pairs}
    for module in given:
        if module not in known:
            raise ConfigError(f"{where}: no target module '{module}'{did_you_mean(module, known)}", f"edit {where}")
    targets = tuple(target for target in TARGETS if target in {known[module] for module in given})
    wanted = {module for module, target in known.items() if target in targets}
    if wanted != set(given):
        raise ConfigError(
            f"{where}: of the MLP some modules are missing: {sorted(wanted - set(given))[0]}", f"edit {where}"
        )
    try:
        return AdapterConfig(
            r=int(content["r"]),
            alpha=float(content["lora_alpha"]),
            dropout=float(content.get("lora_dropout") or 0.0),
            targets=targets,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}", f"edit {where}") from None


def read_config(folder: Path) -> tuple[AdapterConfig, str]:
    """The settings of an adapter folder, and the name of its base.

    Raises what :func:`from_peft` raises, :class:`NotFoundError`, and :class:`CorruptError` for an incomplete adapter.
    """
    path = folder / CONFIG
    if not path.is_file():
        if (folder / WEIGHTS).exists():
            raise CorruptError(f"{folder} is half an adapter: it has no {CONFIG}", "export the adapter again")
        raise NotFoundError(f"{folder} is no adapter: it has no {CONFIG}", f"ls {folder}")
    content = schema.parse_json(path.read_bytes(), str(path))
    return from_peft(content, str(path)), str(content.get("base_model_name_or_path") or "")
