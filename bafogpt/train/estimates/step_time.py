"""Time of one optimizer step: a model, not a measurement. No torch here: launches are planned with it.

A process does n micro-batches of N tokens each; W processes share a step. For its GPU with peak F (FLOP/s) and memory
bandwidth B (bytes/s), reduced by the shares of :class:`Assumptions`, the seconds are::

    products       n·N·2·(weights of the blocks)·passes ÷ F    1 forward, 2 backward (1 where frozen), 1 more where
                                                               ``full`` recomputes; an adapter's pairs on top
    attention      n·N·(attention FLOPs)·passes ÷ 3 ÷ F        3, or 4 where ``full`` recomputes
    element-wise   n·N·bytes·passes ÷ B                        norms, rotary embedding, activation, residuals;
                                                               3, or 4 where anything recomputes
    weights        n·bytes ÷ B                                 gradients added up in float32, weights cast to bf16 (one
                                                               process under autocast), or expanded from 4 bits
    loss           n·chunks·max(bytes ÷ B, FLOPs ÷ F)          a chunk of R rows reads the head twice, reads and writes
                                                               its float32 gradient (not where the head is frozen), and
                                                               moves 12 bytes for each of R·V logits (pessimistic:
                                                               the last two are not hidden, and come on top)
    optimizer      28 bytes·trained numbers ÷ W ÷ B            AdamW in float32
    communication  (gathers + exchanges) ÷ bus                 what is hidden behind the rest is not in the total

Left out: launch overhead, validation, checkpoints, waiting for data. The form is that of a roofline (Williams et al.
2009, doi:10.1145/1498765.1498785); the traffic of sharding is that of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.loss_chunks import chunk_rows
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.estimates import flops
from bafogpt.train.estimates.flops import Shape
from bafogpt.train.estimates.gpus import GpuSpec
from bafogpt.train.estimates.memory import NF4_BYTES


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the model assumes; a figure without a unit is a share of the data sheet's."""

    name: str
    products: float
    """Of the bf16 peak, by large matrix products."""
    products_of: tuple[tuple[str, float], ...]
    """The same for cards whose power limit holds them lower, by the beginning of the card's name."""
    fp8: float
    """Of the fp8 peak, by the blocks' products, casts and scales included."""
    attention: float
    """Of the bf16 peak, by attention."""
    memory: float
    """Of the memory bandwidth."""
    hidden: float
    """Of communication, behind computation."""
    pcie: float
    """Bytes a second between GPUs of one machine without NVLink."""
    nvlink: float
    """Of NVLink's bandwidth."""
    network: float
    """Bytes a second between machines."""
    chunk_hidden: bool
    """Whether a chunk of the loss moves its logits and its gradient of the head while it multiplies, or after it."""

    def products_on(self, gpu: GpuSpec) -> float:
        """The share of the bf16 peak that products reach on ``gpu``."""
        return next((share for name, share in self.products_of if gpu.name.startswith(name)), self.products)

    def bus(self, gpu: GpuSpec, nodes: int) -> float:
        """Bytes a second that a process receives from the others."""
        inside = self.pcie if gpu.link is None else self.nvlink * gpu.link
        return min(inside, self.network) if nodes > 1 else inside

    def describe(self, gpu: GpuSpec, processes: int, nodes: int = 1, *, fp8: bool = False) -> str:
        """The assumptions that matter for ``gpu``, in one line."""
        parts = [
            f"products at {self.products_on(gpu):.0%} of {gpu.bf16 / 1e12:,.0f} TFLOP/s",
            f"attention {self.attention:.0%}",
            f"memory at {self.memory:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s",
        ]
        if fp8 and gpu.fp8:
            parts.insert(1, f"in fp8 {self.fp8:.0%} of {gpu.fp8 / 1e12:,.0f}")
        if not self.chunk_hidden:
            parts.append("the loss's traffic not hidden")
        if processes > 1:
            parts.append(f"{self.bus(gpu, nodes) / 1e9:,.0f} GB/s between GPUs, {self.hidden:.0%} of that hidden")
        return f"{self.name}: {', '.join(parts)}"


EXPECTED = Assumptions(
    name="expected",
    products=0.72,
    products_of=(
        *(("A10G", 0.72), ("A100", 0.72), ("A10", 0.52), ("L40S", 0.62)),
        *(("L40", 0.72), ("L4", 0.45), ("H", 0.60), ("B", 0.60)),
    ),
    fp8=0.55,
    attention=0.35,
    memory=0.85,
    hidden=0.85,
    pcie=20e9,
    nvlink=0.7,
    network=3e9,
    chunk_hidden=True,
)
"""What well-tuned bf16 training reaches; nothing here was measured by this project."""

PESSIMISTIC = Assumptions(
    name="pessimistic",
    products=0.55,
    products_of=(
        *(("A10G", 0.55), ("A100", 0.55), ("A10", 0.40), ("L40S", 0.47)),
        *(("L40", 0.55), ("L4", 0.35), ("H", 0.46), ("B", 0.46)),
    ),
    fp8=0.42,
    attention=0.20,
    memory=0.85,
    hidden=0.60,
    pcie=8e9,
    nvlink=0.5,
    network=1.2e9,
    chunk_hidden=False,
)
"""GPUs that cannot reach each other's memory and copy through the host's, a card that throttles."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step of one process, by purpose."""

    products: float
    attention: float
    elementwise: float
    weights: float
    loss: float
    optimizer: float
    communication: float
    """Total, with the hidden part."""
    exposed: float
    """The part of ``communication`` that computation does not hide."""
    tokens: int
    """Of the step, over all processes."""
    mfu: float
    """Model FLOPs utilisation, 0 to 1."""

    @property
    def total(self) -> float:
        return self.computation + self.optimizer + self.exposed

    @property
    def computation(self) -> float:
        return self.products + self.attention + self.elementwise + self.weights + self.loss

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total, "tokens_per_s": self.tokens_per_s}

    def describe(self) -> str:
        """``"10.8 s a step: products 6.1, attention 0.7, …"``."""
        parts = {
            "products": self.products,
            "attention": self.attention,
            "element-wise": self.elementwise,
            "weights": self.weights,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "communication not hidden": self.exposed,
        }
        return f"{self.total:.1f} s a step: " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items())


def step_time(
    shape: Shape,
    config: TrainConfig,
    gpu: GpuSpec,
    *,
    processes: int,
    micro_batch: int,
    sharding: Sharding = "step",
    nodes: int = 1,
    assumptions: Assumptions = EXPECTED,
) -> StepTime:
    """One step of ``config`` on ``processes`` GPUs over ``nodes`` machines, ``micro_batch`` samples at once."""
    length, trained = config.data.sequence_length, _trained(shape, config)
    tokens = micro_batch * length
    times = max(1, config.batch.tokens // (tokens * processes))
    bandwidth = assumptions.memory * gpu.bandwidth
    passes = 3 + (config.activation_checkpointing != "none")
    products, attention = _compute_times(shape, config, gpu, assumptions)
    of_compute = {
        "products": times * tokens * products,
        "attention": times * tokens * attention,
        "elementwise": times * tokens * passes * _elementwise_bytes(shape, config.adapter) / bandwidth,
        "weights": times * _weight_bytes(shape, config, processes, times, passes) / bandwidth,
        "loss": times * _loss_time(shape, config, gpu, assumptions, tokens),
    }
    computation = sum(of_compute.values())
    communication = _traffic(trained, processes, times, sharding) / assumptions.bus(gpu, nodes)
    exposed = communication - min(assumptions.hidden * communication, 0.9 * computation)
    optimizer = trained / processes * 28 * (0.5 if config.precision == "bf16-true" else 1) / bandwidth
    useful = config.batch.tokens * flops.flops_per_token(shape, length, config.adapter)
    return StepTime(
        **of_compute,
        optimizer=optimizer,
        communication=communication,
        exposed=exposed,
        tokens=config.batch.tokens,
        mfu=useful / (computation + optimizer + exposed) / gpu.bf16 / processes,
    )


def _compute_times(shape: Shape, config: TrainConfig, gpu: GpuSpec, assumptions: Assumptions) -> tuple[float, float]:
    """Seconds a token of products in blocks and of attention; with ``float8`` in fp8 where the card has it."""
    recompute, adapter = config.activation_checkpointing, config.adapter
    # selective does not keep the products of 4-bit layers: see bafogpt.train.estimates.memory
    again = int(recompute == "full" or (recompute == "selective" and adapter is not None and adapter.base == "nf4"))
    rate = assumptions.products_on(gpu) * gpu.bf16
    in_blocks = assumptions.fp8 * gpu.fp8 if config.float8 != "none" and gpu.fp8 else rate
    products = (3 + again - (adapter is not None)) * 2 * flops.block_weights(shape) / in_blocks
    if adapter is not None:
        products += (3 + again) * 2 * flops.adapter_weights(shape, adapter) / rate
    attention = flops.attention_flops(shape, config.data.sequence_length) / (assumptions.attention * gpu.bf16)
    return products, (3 + again) / 3 * attention


def _trained(shape: Shape, config: TrainConfig) -> int:
    """Numbers that are trained."""
    if config.adapter is not None:
        return flops.adapter_weights(shape, config.adapter)
    return flops.matrix_weights(shape) + (0 if config.model.tied else flops.head_weights(shape))


def _elementwise_bytes(shape: Shape, adapter: AdapterConfig | None) -> int:
    """Bytes of bf16 that a token's element-wise work reads and writes in one pass of all layers, after fusion.

    A pair of an adapter reads its input after dropout and adds to its matrix's output: 4 bytes for each number of both
    (head and embedding, outside of the layers, are left out).
    """
    heads = (shape.n_head + 2 * (shape.n_query_groups or shape.n_head)) * (shape.head_size or 0)
    layers = shape.n_layer * 2 * (14 * shape.n_embd + 3 * (shape.intermediate_size or 0) + 2 * heads)
    sides = flops.pairs(shape, adapter) if adapter else []
    return layers + 4 * sum(sum(pair) for pair in sides if shape.padded_vocab_size not in pair)


def _weight_bytes(shape: Shape, config: TrainConfig, processes: int, times: int, passes: int) -> float:
    """Bytes that a micro-batch moves for weights and their gradients, whatever its number of tokens."""
    if config.adapter is not None:
        expanded = NF4_BYTES + 2 if config.adapter.base == "nf4" else 0
        return passes * expanded * flops.block_weights(shape)
    weights = flops.matrix_weights(shape)
    cast = 6 if processes == 1 and config.precision == "bf16-mixed" else 0
    return weights * (cast + (10 if times > 1 else 0))  # a gradient in bf16 is added to one in float32


def _loss_time(shape: Shape, config: TrainConfig, gpu: GpuSpec, assumptions: Assumptions, tokens: int) -> float:
    """Seconds of the loss for one micro-batch: each chunk of rows moves bytes or multiplies, whichever takes longer."""
    vocabulary, head = shape.padded_vocab_size or 1, flops.head_weights(shape)
    learned = config.adapter is None or "head" in config.adapter.targets
    rows = chunk_rows(vocabulary, tokens, gpu=True)
    bandwidth = assumptions.memory * gpu.bandwidth
    multiplied = (6 if learned else 4) * rows * head / (assumptions.products_on(gpu) * gpu.bf16)
    read = 2 * 2 * head / bandwidth
    rewritten = ((8 * head if learned else 0) + 12 * rows * vocabulary) / bandwidth
    chunk = max(read + rewritten, multiplied) if assumptions.chunk_hidden else max(read, multiplied) + rewritten
    return -(-tokens // rows) * chunk


def _traffic(trained: int, processes: int, times: int, sharding: Sharding) -> float:
    """Bytes that a process receives in a step: bf16 weights each time they are gathered, float32 gradients each time
    they are exchanged."""
    gathers, exchanges = {"step": (1, 1), "pass": (2 * times, 1), "full": (2 * times, times)}[sharding]
    return (2 * gathers + 4 * exchanges) * trained * (processes - 1) / processes
