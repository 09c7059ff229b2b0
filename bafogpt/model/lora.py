"""LoRA on a network: low-rank pairs added to frozen matrices, and adapters as folders for PEFT.

litgpt's LoRA replaces the class of every part of the network; here one wrapper is enough. In the fused matrix query,
key and value have one pair each: the A matrices are stacked and the B matrices form a block diagonal, so all pairs take
two multiplications. A missing pair is zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from torch import nn
from torch.nn import functional

from bafogpt.core import digest, files, schema
from bafogpt.core.errors import ConfigError, CorruptError
from bafogpt.model import adapter as adapters
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.formats import param_names, safetensors_io
from bafogpt.model.formats.checkpoint import META, PREFIX, config_of

BASE, SHAPE = "bafogpt.base", "bafogpt.shape"
"""Keys of an adapter file's metadata that identify its base."""


class LoraPair(nn.Module):
    """A [r, in] and B [out, r] of one matrix, float32, on the device of ``like``. B (an embedding's A) starts as zeros,
    so the network is unchanged at first."""

    def __init__(self, inputs: int, outputs: int, r: int, like: torch.Tensor, *, is_embedding: bool = False) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, inputs, device=like.device, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(outputs, r, device=like.device, dtype=torch.float32))
        if is_embedding:
            nn.init.zeros_(self.A)
            nn.init.normal_(self.B)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class LoraLinear(nn.Module):
    """A frozen linear layer with pairs for all or some of its rows."""

    def __init__(self, base: nn.Linear, parts: Mapping[str, tuple[int, int]], config: AdapterConfig) -> None:
        """``parts``: name of each pair → (first row, rows) of the base; created if in ``config.targets``."""
        super().__init__()
        self.base = base
        self.scaling = config.scaling
        self.dropout = config.dropout
        self.inputs, self.outputs = base.in_features, base.out_features
        self.rows = {name: rows for name, rows in parts.items() if name in config.targets}
        self.lora = nn.ModuleDict(
            {name: LoraPair(base.in_features, rows, config.r, base.weight) for name, (_, rows) in self.rows.items()}
        )
        self.train(base.training)  # new modules are in training mode by default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out]."""
        y = self.base(x)
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        a, b = self.matrices()
        low = functional.linear(x, a.to(x.dtype)) * self.scaling
        added = torch.addmm(y.flatten(0, -2), low.flatten(0, -2).to(y.dtype), b.to(y.dtype).T)
        return added.view(y.shape)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All pairs combined: A [n·r, in] and B [out, n·r], zero where a row has no pair."""
        pairs = [pair for pair in self.lora.values() if isinstance(pair, LoraPair)]
        if len(pairs) == 1 and pairs[0].B.shape[0] == self.outputs:
            return pairs[0].A, pairs[0].B
        columns, blocks, last = 0, [], 0
        width = sum(pair.B.shape[1] for pair in pairs)
        for pair, (first, rows) in zip(pairs, self.rows.values(), strict=True):
            if first > last:
                blocks.append(pair.B.new_zeros(first - last, width))
            blocks.append(functional.pad(pair.B, (columns, width - columns - pair.B.shape[1])))
            columns += pair.B.shape[1]
            last = first + rows
        if last < self.outputs:
            blocks.append(pairs[-1].B.new_zeros(self.outputs - last, width))
        return torch.cat([pair.A for pair in pairs]), torch.cat(blocks)

    def delta(self) -> torch.Tensor:
        """The update of the matrix, [out, in]."""
        a, b = self.matrices()
        return (b @ a) * self.scaling

    @property
    def weight(self) -> torch.Tensor:
        """The updated matrix, [out, in]; the fused loss uses the head's."""
        weight: torch.Tensor = self.base.weight
        return weight + self.delta().to(weight.dtype)


class LoraEmbedding(nn.Module):
    """A frozen embedding with a pair."""

    def __init__(self, base: nn.Embedding, config: AdapterConfig) -> None:
        super().__init__()
        self.base = base
        self.scaling = config.scaling
        pair = LoraPair(base.num_embeddings, base.embedding_dim, config.r, base.weight, is_embedding=True)
        self.lora = nn.ModuleDict({"embedding": pair})
        self.train(base.training)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] int64 → [..., C]."""
        pair = self.lora["embedding"]
        assert isinstance(pair, LoraPair)
        low = functional.embedding(ids, pair.A.T)
        embedded: torch.Tensor = self.base(ids)
        return embedded + (low @ pair.B.T * self.scaling).to(embedded.dtype)

    def delta(self) -> torch.Tensor:
        """The update of the matrix, [V, C]."""
        pair = self.lora["embedding"]
        assert isinstance(pair, LoraPair)
        return (pair.B @ pair.A).T * self.scaling

    @property
    def weight(self) -> torch.Tensor:
        """The updated matrix, [V, C]."""
        weight: torch.Tensor = self.base.weight
        return weight + self.delta().to(weight.dtype)


def add(model: Any, gpt: Config, config: AdapterConfig, *, seed: int) -> None:
    """Freeze a network and add pairs to the targets; their initial values depend only on ``seed``."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    q, k, v = param_names.qkv_rows(gpt)
    fused = {"query": (0, q), "key": (q, k), "value": (q + k, v)}
    wanted = set(config.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.transformer.h:
            if wanted & fused.keys():
                block.attn.qkv = LoraLinear(block.attn.qkv, fused, config)
            if "projection" in wanted:
                block.attn.proj = LoraLinear(block.attn.proj, {"projection": (0, gpt.n_embd)}, config)
            if "mlp" in wanted:
                for name in ("fc_1", "fc_2", "proj"):
                    linear = getattr(block.mlp, name)
                    setattr(block.mlp, name, LoraLinear(linear, {"mlp": (0, linear.out_features)}, config))
        if "head" in wanted:
            model.lm_head = LoraLinear(model.lm_head, {"head": (0, gpt.padded_vocab_size)}, config)
        if "embedding" in wanted:
            model.transformer.wte = LoraEmbedding(model.transformer.wte, config)
    if config.neftune:
        model.transformer.wte.register_forward_hook(_noise(config.neftune))


def _noise(size: float) -> Any:
    """NEFTune's hook: uniform noise on an embedding's output in training, from torch's generator."""

    def hook(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        most = size / math.sqrt(output.shape[-2] * output.shape[-1])
        return output + torch.empty_like(output).uniform_(-most, most)

    return hook


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors by our names: ``transformer.h.0.attn.qkv.lora.query.A``."""
    named = ((param_names.bare(name), parameter) for name, parameter in model.named_parameters())
    return {name: parameter.detach() for name, parameter in named if ".lora." in name}


def base_digest(model: nn.Module) -> str:
    """Identifies a base: a hash of the first rows of each tensor, before any pair is added."""
    hasher = digest.hasher("xxh3")
    for name, parameter in sorted((param_names.bare(name), value) for name, value in model.named_parameters()):
        hasher.update(name.encode())
        hasher.update(parameter.detach()[:4].float().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def save(
    folder: Path,
    content: Mapping[str, torch.Tensor],
    config: AdapterConfig,
    gpt: Config,
    *,
    base: str,
    base_digest: str = "",
) -> None:
    """Write adapter tensors (named as by :func:`tensors`) to a new folder that ``peft`` loads, atomically.

    Raises :class:`~bafogpt.core.errors.ConflictError` where ``folder`` exists.
    """
    from safetensors.torch import save_file

    mapped = adapters.peft_names(config, gpt.n_layer)
    with files.new_folder(folder) as partial:
        renamed = {theirs: content[ours].detach().cpu().contiguous() for ours, theirs in mapped.items()}
        about = {"format": "pt", BASE: base_digest, SHAPE: _shape(gpt)}
        save_file(renamed, str(partial / adapters.WEIGHTS), metadata=about)
        text = json.dumps(adapters.to_peft(config, base), indent=2) + "\n"
        files.write_atomic(partial / adapters.CONFIG, text)


def load(folder: Path, model: nn.Module, gpt: Config, *, seed: int = 0) -> AdapterConfig:
    """Add the adapter in ``folder`` to a network without one, in the network's training or evaluation mode.

    Raises :class:`ConfigError` where it is for another base, :class:`CorruptError` where it is incomplete, and what
    :func:`bafogpt.model.adapter.read_config` raises; the network is then unchanged.
    """
    hint = "give the base that the adapter was trained on"
    config, _ = adapters.read_config(folder)
    found, about = _read(folder / adapters.WEIGHTS)
    expected = adapters.peft_names(config, gpt.n_layer)
    missing = [theirs for theirs in expected.values() if theirs not in found]
    if about.get(SHAPE, _shape(gpt)) != _shape(gpt) or len(missing) != len(found.keys() ^ set(expected.values())):
        raise ConfigError(
            f"{folder} is for another base: a model of {about.get(SHAPE, 'another shape')}, not {_shape(gpt)}", hint
        )
    if missing:
        raise CorruptError(f"{folder} is half an adapter: it has no {missing[0]}", "export the adapter again")
    own = about.get(BASE)
    if own and own != base_digest(model):
        raise ConfigError(f"{folder} is for another base: the same sizes, other weights", hint)
    sizes = _sizes(config, gpt)
    for ours, theirs in expected.items():
        if tuple(found[theirs].shape) != sizes[ours]:
            shapes = f"{theirs} is {tuple(found[theirs].shape)}, for this base it is {sizes[ours]}"
            raise ConfigError(f"{folder} is for another base: {shapes}", hint)
    add(model, gpt, config, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (bare := param_names.bare(name)) in expected:
                parameter.copy_(found[expected[bare]])
    return config


def from_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], AdapterConfig, Config, str]:
    """An adapter in a training checkpoint: its tensors by our names, settings, the base's configuration and digest.

    Raises :class:`CorruptError` for an incomplete checkpoint, and :class:`ConfigError` for one without adapter.
    """
    try:
        saved = json.loads((folder / META).read_text(encoding="utf-8"))["fingerprint"]
        content = safetensors_io.read_slices(sorted(folder.glob("*.safetensors")))
        named = {name.removeprefix(PREFIX): weight for name, weight in content.items() if name.startswith(PREFIX)}
        found = {name: weight.tensor() for name, weight in named.items()}
    except Exception as error:  # torn JSON or safetensors, or no file
        raise CorruptError(f"{folder} is not a checkpoint: {error}", f"ls {folder}") from None
    if "adapter" not in saved:
        raise ConfigError(f"{folder} is the checkpoint of a whole model, not of an adapter", "bafogpt model export RUN")
    config = schema.build(AdapterConfig, saved["adapter"], where=str(folder))
    gpt = config_of(saved["model"], str(folder))
    missing = [name for name in adapters.peft_names(config, gpt.n_layer) if name not in found]
    if missing:
        raise CorruptError(f"{folder} is half an adapter: it has no {missing[0]}", "bafogpt runs show RUN")
    return found, config, gpt, str(saved.get("base", ""))


def _sizes(config: AdapterConfig, gpt: Config) -> dict[str, tuple[int, ...]]:
    """Shape of each adapter tensor on that network."""
    from bafogpt.model.gpt import GPT

    with torch.device("meta"):
        empty = GPT(gpt)
        add(empty, gpt, config, seed=0)
    return {name: tuple(tensor.shape) for name, tensor in tensors(empty).items()}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path} is half an adapter: {error}", "export the adapter again") from None


def _shape(gpt: Config) -> str:
    """The sizes that an adapter depends on, as text."""
    heads = f"{gpt.n_head}/{gpt.n_query_groups} heads of {gpt.head_size}"
    return f"{gpt.n_layer} layers, width {gpt.n_embd}, {heads}, MLP {gpt.intermediate_size}"
