"""The network: litgpt's GPT with our attention, cache and loss. Parameters keep litgpt's names."""

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
    """litgpt's GPT, called in another way."""

    z_loss: float = 0.0
    """What :meth:`forward` adds of (log Σ exp)² to each target's loss while the model trains."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for block in self.transformer.h:
            # litgpt's block makes its own; changing the class, as fully_shard does, draws no weights twice
            block.attn.__class__ = Attention
            # not by the block's number: compiled blocks would each be a case of their own
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

        ``ids`` and ``targets`` are [B, T] int64. Without targets: soft-capped logits [B, T, V]. With them: the sum of
        the cross-entropy over all targets but −100, float32, in nats, plus :attr:`z_loss` in training mode.
        ``documents`` [B, T] int32 keeps tokens of different numbers from seeing each other. With a ``cache`` the ids
        follow those that are in it, and join them.

        One call for both, because FSDP gathers parameters here and nowhere else. Raises :class:`UsageError` for more
        tokens than positions or than the cache has room for, and :class:`DataError` for an id outside the vocabulary.
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
        """What the output head gets, [B, T, C]."""
        tokens = ids.size(1)
        if cache is not None:
            assert documents is None, "a cache holds one document a row"
            cache.require_room(tokens)
        elif tokens > self.max_seq_length:
            raise UsageError(
                f"{tokens} tokens are more than the model's {self.max_seq_length} positions",
                "shorten the samples, or raise the model's block_size",
            )
        view = make_masks(self.config, self.cos, self.sin, tokens, documents, cache)
        x = self.transformer.wte(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        for block in self.transformer.h:
            x = block(x, None, None, view)
        if cache is not None:
            cache.length += tokens
        normed: torch.Tensor = self.transformer.ln_f(x)
        return normed

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Soft-capped logits [..., V] of what :meth:`hidden` gave."""
        logits: torch.Tensor = self.lm_head(x)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _require_ids(self, ids: torch.Tensor, targets: torch.Tensor | None) -> None:
        """On a CPU only: on a GPU the look would make the loop wait, and the embedding's kernel stops by itself."""
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
    """A model with random weights that depend on ``seed`` alone, on the CPU in float32."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = GPT(config)
    model.apply(model._init_weights)
    torch.random.set_rng_state(generator_state)
    if tie_embeddings:
        tie(model)
    return model


def empty_gpt(config: Config, *, tie_embeddings: bool) -> GPT:
    """A model whose parameters have sizes and no memory (torch's meta device): :func:`materialise` gives them that."""
    with torch.device("meta"):
        model = GPT(config)
    if tie_embeddings:
        tie(model)
    return model


def materialise(model: GPT, device: torch.device) -> None:
    """Give the parameters of a model from :func:`empty_gpt` memory on ``device``, sharded ones their own part of it.

    What is in that memory is not defined until weights are loaded; the angles of the positions, which are in no file,
    are computed. A model that has memory is left as it is.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        return
    tied = model.lm_head.weight is model.transformer.wte.weight
    model.to_empty(device=device)
    if tied and model.lm_head.weight is not model.transformer.wte.weight:
        tie(model)
    model.reset_parameters()


def tie(model: GPT) -> None:
    """Make the output head the embedding matrix itself. litgpt keeps two."""
    model.lm_head.weight = model.transformer.wte.weight


def load_gpt(folder: ModelFolder, *, device: str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """A model folder's network, not sharded and not for training, in the folder's dtype unless another is given."""
    model = empty_gpt(folder.config, tie_embeddings=folder.tied)
    model.to(dtype or folder.dtype)
    materialise(model, torch.device(device))
    folder.load_into(model)
    model.eval()
    return model
