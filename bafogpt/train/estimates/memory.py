"""Memory that training needs on a device, estimated. No torch here: a launch is planned with it.

Tests hold the estimate against what torch's allocator reserves for whole steps; an H100 had 0.95 to 1.04 × of it. For a
process, with P parameters over W processes, d wide, V ids, and bytes b = 4, or 2 under ``bf16-true``::

    state        4·P·b/W           weights, gradients and AdamW's two moments, sharded; where there is an adapter what
                                   is frozen (0.52 bytes a number in NF4, whole on every process), and 16 for each
                                   number of its own; with moments in 8 bits 2·P for the two, and 10 in place of 16
    gathered     P·c, or two blocks' and the embedding's share of it unless ``sharding`` is step; c is 2 in bf16, else 4
    accumulated  4·P               gradients that wait, whole, for the last micro-batch (W > 1, more than one, unless
                                   ``sharding`` is full)
    reduced      4·V·d             the largest gradient while it is exchanged (W > 1), in memory of its own stream
    activations  tokens x (layers x what a block keeps + what one block needs while it is recomputed)
    head         4·V·d + logits    the fused loss: the head's gradient, if it is learned, and a chunk of logits
    context      1.5 GB on a GPU   driver and communication, which torch's allocator does not see
"""

from __future__ import annotations

from dataclasses import dataclass

from bafogpt.model.loss_chunks import chunk_bytes
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.estimates.flops import Shape, adapter_weights, block_weights, head_weights, matrix_weights

CONTEXT_BYTES = 1_500_000_000
NF4_BYTES = 0.516
"""4 bits, a byte of scale for each 64 numbers, and a float32 for each 256 scales."""
MARGIN = 0.92
"""Share of a device's memory that is planned with."""
OUT_OF_MEMORY_TEXTS = ("out of memory", "alloc_failed", "cudaerrormemoryallocation")
"""Errors of torch, CUDA, Triton, cuBLAS (``CUBLAS_STATUS_ALLOC_FAILED``) and bitsandbytes, in lower case."""


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
    shape: Shape, config: TrainConfig, *, micro_batch: int, processes: int, gpu: bool, sharding: Sharding
) -> MemoryEstimate:
    """What a process needs with micro-batches of ``micro_batch`` samples."""
    weights, head = matrix_weights(shape) + (0 if config.model.tied else head_weights(shape)), head_weights(shape)
    itemsize = 4 if config.precision == "32-true" else 2
    tokens = micro_batch * config.data.sequence_length
    kept, block = _block_activations(shape, config, gpu=gpu)
    learns_head = config.adapter is None or "head" in config.adapter.targets
    gathered = accumulated = reduced = 0
    if processes > 1:
        # what is frozen is neither sharded nor gathered
        trained = weights if config.adapter is None else adapter_weights(shape, config.adapter)
        accumulates = config.batch_samples // processes > micro_batch and sharding != "full"
        gathered = trained * itemsize
        accumulated = 4 * trained if accumulates or config.adapter is not None else 0
        reduced = 4 * head if config.adapter is None else 0
        if config.adapter is None and sharding != "step":
            gathered = (2 * block_weights(shape) // shape.n_layer + head) * itemsize
    elif config.precision == "bf16-mixed":
        gathered = weights * itemsize  # autocast keeps its copies
    return MemoryEstimate(
        state=_state(shape, config, weights, processes),
        gathered=gathered,
        accumulated=accumulated,
        reduced=reduced,
        activations=tokens * (kept * shape.n_layer + block) * itemsize,
        head=learns_head * head * 4 + chunk_bytes(shape.padded_vocab_size or 1, tokens, gpu=gpu, itemsize=itemsize),
        context=CONTEXT_BYTES if gpu else 0,
    )


def _state(shape: Shape, config: TrainConfig, weights: int, processes: int) -> int:
    """Bytes of weights, gradients and moments; of an adapter and its frozen base, whose embedding and head are never in
    4 bits."""
    itemsize = 2 if config.precision == "bf16-true" else 4
    eight_bit, adapter = config.optimizer.name == "adamw8bit-paged", config.adapter
    if adapter is None:
        return weights * (2 * itemsize + (2 if eight_bit else 2 * itemsize)) // processes
    frozen = min(itemsize, 2) if adapter.base == "bf16" else itemsize
    blocks = block_weights(shape)
    base = int(blocks * (NF4_BYTES if adapter.base == "nf4" else frozen)) + (weights - blocks) * frozen
    return base + (10 if eight_bit else 16) * adapter_weights(shape, adapter)


def _block_activations(shape: Shape, config: TrainConfig, *, gpu: bool) -> tuple[int, int]:
    """Numbers a token that each block keeps, and that one block needs while it is recomputed.

    ``none`` keeps all: residual, norms' inputs and results, query, key, value and attention's result, the tensors of
    the MLP and their product. A compiled block recomputes some of them by itself, and a frozen MLP needs no inputs for
    its own gradient. ``selective`` keeps the results of products only, but not those of 4-bit layers, whose product is
    no operator of torch. ``full`` keeps the block's input.
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
    return {"none": (whole, 0), "selective": (products, whole), "full": (d, whole)}[config.activation_checkpointing]


def choose_micro_batch(
    shape: Shape, config: TrainConfig, *, processes: int, gpu: bool, memory: int
) -> tuple[int, Sharding]:
    """(micro-batch, sharding) for a device of ``memory`` bytes; the micro-batch is 0 when nothing fits.

    A micro-batch that is set stays; else it is the largest power of two that divides a process's share of a step and
    fits. Weights are gathered for each pass only where that more than doubles the micro-batch, and gradients exchanged
    after each micro-batch only where nothing else fits.
    """
    share, size = config.batch_samples // processes, config.batch.micro_batch_size
    candidates = [size] if size else [2**k for k in range(7) if share % 2**k == 0]

    def largest(sharding: Sharding) -> int:
        def fits(micro_batch: int) -> bool:
            needed = estimate(shape, config, micro_batch=micro_batch, processes=processes, gpu=gpu, sharding=sharding)
            return needed.total <= memory * MARGIN

        return max(filter(fits, candidates), default=0)

    if config.sharding != "auto":
        return largest(config.sharding), config.sharding
    for_step, for_pass = largest("step"), largest("pass")
    if for_step or for_pass:
        return (for_step, "step") if 2 * for_step >= for_pass else (for_pass, "pass")
    return largest("full"), "full"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by torch's class or by a library's text. Triton's "out of resource" is something else."""
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)
