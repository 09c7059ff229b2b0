"""What training takes of a device's memory, before it is tried. No torch here: a launch is planned with it.

A model, held by tests against what torch's allocator reserves for whole steps; an H100 had 0.95 to 1.04 × of it. For a
process, with P parameters over W processes, d wide, V ids, and bytes b = 4, or 2 under ``bf16-true``::

    state        4·P·b/W           weights, gradients and AdamW's two moments, sharded; where there is an adapter what
                                   is frozen (0.52 bytes a number in NF4, whole on every process), and 16 for each
                                   number of its own; with moments in 8 bits 2·P for the two, and 10 in place of 16
    gathered     P·c, or two blocks' and the embedding's share of it unless ``sharding`` is step; c is 2 in bf16, else 4
    accumulated  4·P               gradients that wait, whole, for the last micro-batch (W > 1, more than one, unless
                                   ``sharding`` is full)
    reduced      4·V·d             the largest gradient while it is exchanged (W > 1): the allocator keeps the memory of
                                   that stream for that stream
    activations  tokens x (layers x what a block keeps + what one block needs while it is computed again), see ``_kept``
    head         4·V·d + logits    the fused loss: the head's gradient, if it is learned, and a chunk of logits
    context      1.5 GB on a GPU   driver and communication, which torch's allocator does not see
"""

from __future__ import annotations

from dataclasses import dataclass

from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.loss_chunks import chunk_bytes
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.estimates.flops import Shape, adapter_weights, block_weights, head_weights, matrix_weights

CONTEXT_BYTES = 1_500_000_000
NF4_BYTES = 0.516
"""4 bits, a byte of scale for each 64 numbers, and a float32 for each 256 scales."""
MARGIN = 0.92
"""Share of a device's memory that is planned with."""

OUT_OF_MEMORY_TEXTS = ("out of memory", "alloc_failed", "cudaerrormemoryallocation")
"""In the words of torch, CUDA, Triton, cuBLAS (``CUBLAS_STATUS_ALLOC_FAILED``) and bitsandbytes, in small letters."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a process needs on its device, by what for."""

    state: int
    gathered: int
    accumulated: int
    reduced: int
    activations: int
    head: int
    context: int

    @property
    def reserved(self) -> int:
        """What torch's allocator holds."""
        return self.state + self.gathered + self.accumulated + self.reduced + self.activations + self.head

    @property
    def total(self) -> int:
        return self.reserved + self.context


def estimate(
    shape: Shape,
    config: TrainConfig,
    *,
    micro_batch: int,
    processes: int,
    gpu: bool,
    sharding: Sharding,
    tied: bool = True,
) -> MemoryEstimate:
    """What a process needs with micro-batches of ``micro_batch`` samples."""
    weights, head = matrix_weights(shape) + (0 if tied else head_weights(shape)), head_weights(shape)
    state_bytes = 2 if config.precision == "bf16-true" else 4
    computed = 4 if config.precision == "32-true" else 2
    if processes == 1:
        gathered = weights * computed if config.precision == "bf16-mixed" else 0  # autocast keeps its copies
    elif sharding != "step":
        gathered = (2 * block_weights(shape) // shape.n_layer + head) * computed
    else:
        gathered = weights * computed
    several = config.batch_samples // processes > micro_batch
    tokens = micro_batch * config.data.sequence_length
    eight_bit = config.optimizer.name == "adamw8bit-paged"
    state = weights * (2 * state_bytes + (2 if eight_bit else 2 * state_bytes)) // processes
    accumulated = 4 * weights if processes > 1 and several and sharding != "full" else 0
    reduced, learns_head = 4 * head if processes > 1 else 0, True
    if config.adapter is not None:
        pairs = adapter_weights(shape, config.adapter)
        state = _frozen(shape, config.adapter, weights, state_bytes) + (10 if eight_bit else 16) * pairs
        if processes > 1:  # only what is trained is sharded and gathered
            gathered, accumulated, reduced = pairs * computed, 4 * pairs, 0
        learns_head = "head" in config.adapter.targets
    kept, block = _kept(shape, config, computed, gpu=gpu)
    logits = chunk_bytes(shape.padded_vocab_size or 1, tokens, gpu=gpu, itemsize=computed)
    return MemoryEstimate(
        state=state,
        gathered=gathered,
        accumulated=accumulated,
        reduced=reduced,
        activations=tokens * (kept * shape.n_layer + block),
        head=learns_head * head * 4 + logits,
        context=CONTEXT_BYTES if gpu else 0,
    )


def _frozen(shape: Shape, adapter: AdapterConfig, weights: int, plain: int) -> int:
    """Bytes of what is frozen, ``plain`` a number as it comes; embedding and head are never in 4 bits."""
    width = min(plain, 2) if adapter.base == "bf16" else plain
    blocks = block_weights(shape)
    return int(blocks * (NF4_BYTES if adapter.base == "nf4" else width)) + (weights - blocks) * width


def _kept(shape: Shape, config: TrainConfig, computed: int, *, gpu: bool) -> tuple[int, int]:
    """Bytes a token that each block keeps, and that one block needs while it is computed; ``computed`` bytes a number.

    Whole: the residual, norms' inputs and results, query, key, value and attention's result, the tensors of the MLP and
    their product; a compiled block makes some again by itself. A frozen MLP needs no inputs for its own gradient.
    ``selective`` keeps the products' results alone, and of 4-bit layers none, because their product is not one that
    torch knows; ``full`` keeps the block's input.
    """
    d, inner = shape.n_embd, shape.intermediate_size or 0
    heads = (shape.n_head + 2 * (shape.n_query_groups or shape.n_head)) * (shape.head_size or 0)
    attended = shape.n_head * (shape.head_size or 0)
    compiled = config.compile == "always" or (gpu and config.compile == "auto")
    whole = 7 * d + heads + 2 * attended + 3 * inner if compiled else 10 * d + 2 * heads + 2 * attended + 4 * inner
    products = 3 * d + heads + attended + 2 * inner
    if config.adapter is not None and compiled:
        if "mlp" not in config.adapter.targets:
            whole -= d + inner
        if config.adapter.base == "nf4":
            products = d + heads + attended
    again = {"none": (whole, 0), "selective": (products, whole), "full": (d, whole)}
    kept, block = again[config.activation_checkpointing]
    return kept * computed, block * computed


def choose_micro_batch(
    shape: Shape, config: TrainConfig, *, processes: int, gpu: bool, memory: int, tied: bool = True
) -> tuple[int, Sharding]:
    """(micro-batch, sharding) for a device of ``memory`` bytes; the micro-batch is 0 when nothing fits.

    A micro-batch that is set stays; else it is the largest power of two that divides a process's share of a step and
    fits. Weights are gathered for each pass only where that more than doubles the micro-batch, and gradients exchanged
    after each micro-batch only where nothing else fits.
    """
    share = config.batch_samples // processes

    def largest(sharding: Sharding) -> int:
        candidates = (
            [config.batch.micro_batch_size]
            if config.batch.micro_batch_size
            else [2**k for k in range(7) if share % 2**k == 0]
        )
        needs = {
            micro_batch: estimate(
                shape, config, micro_batch=micro_batch, processes=processes, gpu=gpu, sharding=sharding, tied=tied
            )
            for micro_batch in candidates
        }
        return max((micro_batch for micro_batch, each in needs.items() if each.total <= memory * MARGIN), default=0)

    if config.sharding != "auto":
        return largest(config.sharding), config.sharding
    for_step, for_pass = largest("step"), largest("pass")
    if for_step or for_pass:
        return (for_step, "step") if 2 * for_step >= for_pass else (for_pass, "pass")
    return largest("full"), "full"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so with its own class, or a library in words. Triton's "out of resource" is another thing."""
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)
