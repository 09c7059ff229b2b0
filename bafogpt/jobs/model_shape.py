"""The sizes of a job's network, without torch or litgpt: for prices, memory and disk."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace

from bafogpt.core import schema
from bafogpt.core.errors import BafoError
from bafogpt.jobs.job import Job
from bafogpt.storage.bucket import Bucket
from bafogpt.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that decide the cost of a token; names and meanings are litgpt's."""

    n_layer: int
    n_embd: int
    n_head: int
    n_query_groups: int
    head_size: int
    intermediate_size: int
    padded_vocab_size: int = 256_000
    """Rows of the published model; the manifest of a job's dataset may have more ids."""
    mlp_class_name: str = "GemmaMLP"
    sliding_window_size: int | None = 4096
    full_every: int = 2
    """Every ``full_every``-th layer has no sliding window."""

    @property
    def sliding_window_indices(self) -> list[int]:
        """1 for each layer with a window."""
        return [int((layer + 1) % self.full_every != 0) for layer in range(self.n_layer)]


def _shape(layers: int, width: int, heads: int, groups: int, head: int, inner: int, **more: int) -> ModelShape:
    return ModelShape(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_query_groups=groups,
        head_size=head,
        intermediate_size=inner,
        **more,  # type: ignore[arg-type]
    )


def _gemma_3(*sizes: int, window: int) -> ModelShape:
    return _shape(*sizes, padded_vocab_size=262_144, sliding_window_size=window, full_every=6)


_GEMMA_2 = {
    "2b": _shape(26, 2304, 8, 4, 256, 9216),
    "9b": _shape(42, 3584, 16, 8, 256, 14_336),
    "27b": _shape(46, 4608, 32, 16, 128, 36_864),
}
_GEMMA_3 = {
    "1b": _gemma_3(26, 1152, 4, 1, 256, 6912, window=512),
    "4b": _gemma_3(34, 2560, 8, 4, 256, 10_240, window=1024),
    "12b": _gemma_3(48, 3840, 16, 8, 256, 15_360, window=1024),
    "27b": _gemma_3(62, 5376, 32, 16, 128, 21_504, window=1024),
}
KNOWN = {
    **{f"Gemma-2-{size}{kind}": shape for size, shape in _GEMMA_2.items() for kind in ("", "-it")},
    "Gemma-3-270m": _gemma_3(18, 640, 4, 1, 256, 2048, window=512),
    **{f"Gemma-3-{size}{kind}": shape for size, shape in _GEMMA_3.items() for kind in ("-pt", "-it")},
}
"""Gemma's sizes; a test compares them with litgpt's."""
_OF_TYPE = {"gemma2": "Gemma-2-2b", "gemma3_text": "Gemma-3-1b-pt"}
_IN_CONFIG = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_query_groups",
    "head_dim": "head_size",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window_size",
}
"""Sizes in a model folder's ``config.json``; the families in :data:`_OF_TYPE` write all of them."""
MAX_CHAIN = 8
"""Longest chain of runs that started from each other's checkpoints."""


def shape_of(config: TrainConfig, vocab_size: int | None = None) -> ModelShape | None:
    """The model's sizes with the job's overrides; None for an unknown model, or one that only the checkpoint defines.

    Rows of the vocabulary are padded to a multiple of 64, as in the trainer.
    """
    model = config.model
    known = KNOWN.get(model.network) if model.name or not model.checkpoint else None
    if known is None:
        return None
    sizes = set(ModelShape.__dataclass_fields__)
    changed = {key: value for key, value in config.model.overrides.items() if key in sizes}
    vocabulary = vocab_size or config.model.overrides.get("vocab_size") or known.padded_vocab_size
    return replace(known, padded_vocab_size=-(-int(vocabulary) // 64) * 64, **changed)


def with_network_sizes(job: Job, bucket: Bucket) -> Job:
    """``job`` with the name and sizes of its network, read from its first weights in ``bucket``.

    The job itself where it names its network, or where the bucket has no description of it.
    """
    model = schema.to_dict(job.train.model)
    for _ in range(MAX_CHAIN):
        if model.get("name") or not model.get("checkpoint"):
            break
        folder, model = str(model["checkpoint"]), {}
        with contextlib.suppress(BafoError, ValueError, KeyError, TypeError, AttributeError):
            if bucket.exists(f"{folder}/config.json"):
                content = json.loads(bucket.get(f"{folder}/config.json"))
                sizes = {ours: int(content[theirs]) for theirs, ours in _IN_CONFIG.items()}
                model = {"name": _OF_TYPE[content["model_type"]], "overrides": sizes}
            else:
                model = dict(json.loads(bucket.get(f"{folder}/run.json"))["job"]["train"]["model"])
    if job.train.model.name or not model.get("name"):
        return job
    changed = replace(job.train.model, name=model["name"], overrides=dict(model.get("overrides") or {}))
    return replace(job, train=replace(job.train, model=changed))
