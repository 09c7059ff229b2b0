"""The network: litgpt's GPT, with its parameter names, and our attention, cache and loss."""

from __future__ import annotations

import litgpt.model
import torch
from litgpt.config import Config

from bafogpt.core.errors import DataError, UsageError
from bafogpt.model.attention import Attention, make_masks
from bafogpt.model.cache import KVCache
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.loss import IGNORE, linear_cross_entropy


class GPT(litgpt.model.GPT):  # type: ignore[misc]
    """litgpt's GPT with another forward pass."""

    z_loss: float = 0.0
    """Coefficient of (log Σ exp)² in each target's loss in training mode."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for block in self.transformer.h:
            # changing the class, as fully_shard does, initialises no weights twice
            block.attn.__class__ = Attention
            # stored here: a lookup by block number would make each compiled block a separate case
            block.attn.rope_kind = config.rope_indices[block.attn.block_idx] if config.rope_indices else None

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """Logits of ``ids``, or their loss.

        ``ids`` and ``targets`` are [B, T] int64. Without targets: soft-capped logits [B, T, V]. With targets: the sum
        of the cross-entropy over all targets but :data:`IGNORE`, float32, in nats, plus the z-loss in training mode.
        ``documents`` [B, T] int32 hides tokens with different numbers from each other. The ids follow those in
        ``cache`` and are added to it.

        One method for both, because FSDP gathers parameters only here. Raises :class:`UsageError` for more tokens than
        positions or room in the cache, and :class:`DataError` for an id outside the vocabulary.
        """
        self._require_ids(ids, targets)
        x = self.hidden(ids, documents=documents, cache=cache)
        if targets is None:
            return self.logits(x)
        return linear_cross_entropy(
            x.flatten(0, 1),
            self.lm_head.weight,
            targets.flatten(),
            softcap=self.config.final_logit_softcapping,
            z_loss=self.z_loss if self.training else 0.0,
        )

    def hidden(
        self, ids: torch.Tensor, *, documents: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """The input of the output head, [B, T, C]."""
        tokens = ids.size(1)
        if cache is not None:
            assert documents is None, "a cache holds one document a row"
            cache.require_room(tokens)
        elif tokens > self.max_seq_length:
            raise UsageError(
                f"{tokens} tokens are more than the model's {self.max_seq_length} positions",
                "shorten the samples, or raise the model's block_size",
            )
        masks = make_masks(self.config, self.cos, self.sin, tokens, documents, cache)
        x = self.transformer.wte(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        for block in self.transformer.h:
            x = block(x, None, None, masks)
        if cache is not None:
            cache.length += tokens
        normed: torch.Tensor = self.transformer.ln_f(x)
        return normed

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Soft-capped logits [..., V] of the result of :meth:`hidden`."""
        logits: torch.Tensor = self.lm_head(x)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _require_ids(self, ids: torch.Tensor, targets: torch.Tensor | None) -> None:
        """On a CPU only: on a GPU the check would synchronise, and the embedding's kernel checks ids itself."""
        size = self.config.padded_vocab_size
        for what, values in (("token", ids), ("target", targets)):
            if values is None or values.device.type != "cpu" or not values.numel():
                continue
            wrong = (values < 0) | (values >= size)
            if what == "target":
                wrong &= values != IGNORE
            if wrong.any():
                raise DataError(
                    f"{what} {int(values[wrong][0])} is outside the model's vocabulary of {size} ids",
                    "give the model the tokenizer it was made with",
                )


def new_gpt(config: Config, *, tie_embeddings: bool, seed: int) -> GPT:
    """A model with random weights that depend only on ``seed``, on the CPU in float32."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = GPT(config)
    model.apply(model._init_weights)
    torch.random.set_rng_state(generator_state)
    if tie_embeddings:
        tie(model)
    return model


def empty_gpt(config: Config, *, tie_embeddings: bool) -> GPT:
    """A model on torch's meta device: :func:`materialise` allocates its parameters."""
    with torch.device("meta"):
        model = GPT(config)
    if tie_embeddings:
        tie(model)
    return model


def materialise(model: GPT, device: torch.device) -> None:
    """Allocate the parameters of a model from :func:`empty_gpt` on ``device``, sharded ones only their own part.

    Their values are undefined until weights are loaded; the rotary angles are computed. Other models are unchanged.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        return
    tied = model.lm_head.weight is model.transformer.wte.weight
    model.to_empty(device=device)
    if tied and model.lm_head.weight is not model.transformer.wte.weight:
        tie(model)
    model.reset_parameters()


def tie(model: GPT) -> None:
    """Share one matrix between embedding and output head."""
    model.lm_head.weight = model.transformer.wte.weight


def load_gpt(folder: ModelFolder, *, device: str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """The network of a model folder in evaluation mode, not sharded, in ``dtype`` or the folder's."""
    model = empty_gpt(folder.config, tie_embeddings=folder.tied)
    model.to(dtype or folder.dtype)
    materialise(model, torch.device(device))
    folder.load_into(model)
    model.eval()
    return model
