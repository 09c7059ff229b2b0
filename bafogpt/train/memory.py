"""What training takes of a device's memory, before it is tried. No torch here: a launch is planned with it.

A model, not a measurement: good to choose a micro-batch from and to refuse what cannot fit before it dies. For a
process, with P parameters over W processes, and bytes b = 4, or 2 under ``bf16-true``::

    state        4·P·b/W           weights, gradients and AdamW's two moments, sharded; where there is an adapter what
                                   is frozen (0.52 bytes a number in NF4, whole on every process), and 16 for each
                                   number of its own; with moments in 8 bits 2·P for the two, and 10 in place of 16
    gathered     P·c, or two blocks' and the embedding's share of it where resharded; c is 2 in bf16, else 4
    accumulated  4·P               gradients that wait, whole, for the last micro-batch (W > 1, more than one)
    kept         tokens x layers x what a block keeps for the backward pass (see ``_kept``)
    block        tokens x what one block needs while it is computed again
    head         V·d·4 + 2 x 256 MB    the fused loss: the head's gradient, if it is learned, and its chunks of logits
    context      1.5 GB on a GPU   driver, communication, fragments
"""

from __future__ import annotations

from dataclasses import dataclass

from bafogpt.model.adapter import OUTSIDE, AdapterConfig
from bafogpt.train.config import Recompute, TrainConfig
from bafogpt.train.flops import Shape, matrix_weights

CONTEXT_BYTES = 1_500_000_000
CHUNKS_BYTES = 2 * (256 << 20)
NF4_BYTES = 0.516
"""4 bits, a byte of scale for each 64 numbers, and a float32 for each 256 scales."""
MARGIN = 0.92
"""Share of a device's memory that is planned with."""
LARGEST_MICRO = 64


@dataclass(frozen=True)
class Need:
    """Bytes that a process needs on its device, by what for."""

    state: int
    gathered: int
    accumulated: int
    activations: int
    head: int
    context: int

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.accumulated + self.activations + self.head + self.context


def need(
    shape: Shape, config: TrainConfig, *, micro: int, processes: int, gpu: bool, reshard: bool, tied: bool = True
) -> Need:
    """What a process needs with micro-batches of ``micro`` samples."""
    vocabulary, width = shape.padded_vocab_size or 0, shape.n_embd
    weights = matrix_weights(shape) + (0 if tied else vocabulary * width)
    state_bytes = 2 if config.precision == "bf16-true" else 4
    computed = 4 if config.precision == "32-true" else 2
    if processes == 1:
        gathered = weights * computed if config.precision == "bf16-mixed" else 0  # autocast keeps its copies
    elif reshard:
        block = (matrix_weights(shape) - vocabulary * width) // shape.n_layer
        gathered = (2 * block + vocabulary * width) * computed
    else:
        gathered = weights * computed
    several = config.batch_samples // processes > micro
    tokens = micro * config.data.sequence_length
    kept, block_bytes = _kept(shape, config.activation_checkpointing, computed)
    eight_bit = config.optimizer.name == "adamw8bit-paged"
    state = weights * (2 * state_bytes + (2 if eight_bit else 2 * state_bytes)) // processes
    accumulated, learns_head = 4 * weights if processes > 1 and several else 0, True
    if config.adapter is not None:
        pairs = _pairs(shape, config.adapter)
        state = _frozen(shape, config.adapter, weights, state_bytes) + (10 if eight_bit else 16) * pairs
        if processes > 1:  # only what is trained is sharded and gathered
            gathered, accumulated = pairs * computed, 4 * pairs
        learns_head = "head" in config.adapter.targets
    return Need(
        state=state,
        gathered=gathered,
        accumulated=accumulated,
        activations=tokens * (kept * shape.n_layer + block_bytes),
        head=learns_head * vocabulary * width * 4 + min(CHUNKS_BYTES, 8 * tokens * vocabulary),
        context=CONTEXT_BYTES if gpu else 0,
    )


def _frozen(shape: Shape, adapter: AdapterConfig, weights: int, plain: int) -> int:
    """Bytes of what is frozen, ``plain`` a number as it comes; embedding and head are never in 4 bits."""
    width = min(plain, 2) if adapter.base == "bf16" else plain
    blocks = matrix_weights(shape) - (shape.padded_vocab_size or 0) * shape.n_embd
    return int(blocks * (NF4_BYTES if adapter.base == "nf4" else width)) + (weights - blocks) * width


def _pairs(shape: Shape, adapter: AdapterConfig) -> int:
    """Numbers in an adapter."""
    d, inner, vocabulary = shape.n_embd, shape.intermediate_size or 0, shape.padded_vocab_size or 0
    query = shape.n_head * (shape.head_size or 0)
    groups = (shape.n_query_groups or shape.n_head) * (shape.head_size or 0)
    sides = {
        "query": d + query,
        "key": d + groups,
        "value": d + groups,
        "projection": d + query,
        "mlp": 3 * (d + inner),
    }
    layers = sum(sides.get(target, 0) for target in adapter.targets) * shape.n_layer
    return adapter.r * (layers + (d + vocabulary) * sum(target in OUTSIDE for target in adapter.targets))


def _kept(shape: Shape, recompute: Recompute, computed: int) -> tuple[int, int]:
    """Bytes a token that each block keeps, and that one block needs while it is computed; ``computed`` bytes a number.

    Whole: the residual twice, four norms' inputs and results, query, key, value and attention's result, three tensors
    of the MLP and their product. ``selective`` keeps the products' results alone, ``full`` the block's input.
    """
    d, inner = shape.n_embd, shape.intermediate_size or 0
    heads = (shape.n_head + 2 * (shape.n_query_groups or shape.n_head)) * (shape.head_size or 0)
    attended = shape.n_head * (shape.head_size or 0)
    whole = computed * (10 * d + 2 * heads + 2 * attended + 4 * inner)
    products = computed * (3 * d + heads + attended + 2 * inner)
    return {"none": (whole, 0), "selective": (products, whole), "full": (computed * d, whole)}[recompute]


def choose(
    shape: Shape, config: TrainConfig, *, processes: int, gpu: bool, memory: int, tied: bool = True
) -> tuple[int, bool]:
    """(micro-batch, whether to reshard after forward) for a device of ``memory`` bytes.

    A micro-batch that is set stays; else it is the largest power of two that divides a process's share of a step and
    fits. Resharding is left out where that costs no more than half of the micro-batch. (0, True) when nothing fits.
    """
    share = config.batch_samples // processes

    def fits(micro: int, reshard: bool) -> bool:
        wanted = need(shape, config, micro=micro, processes=processes, gpu=gpu, reshard=reshard, tied=tied)
        return wanted.total <= memory * MARGIN

    def largest(reshard: bool) -> int:
        candidates = [config.batch.micro] if config.batch.micro else [2**k for k in range(7) if share % 2**k == 0]
        return max((micro for micro in candidates if micro <= LARGEST_MICRO and fits(micro, reshard)), default=0)

    options = {"always": (True,), "never": (False,), "auto": (True, False)}[config.reshard_after_forward]
    most = max(largest(reshard) for reshard in options)
    for reshard in sorted(options):  # not to reshard comes first
        if (found := largest(reshard)) and 2 * found >= most:
            return found, reshard
    return 0, True
