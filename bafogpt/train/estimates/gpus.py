"""The GPUs that jobs run on: peaks, memory and bandwidths, from NVIDIA's data sheets. No torch here.

Peaks are dense matrix products with float32 accumulation; data sheets also give twice that for sparse ones, and
GeForce cards reach half of it. Memory is the smallest figure that ``torch.cuda`` reports in public out-of-memory
messages: ECC and the driver take 1 to 2 GB of the nominal size. For A100 and B200 it is a round figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class GpuSpec:
    """One card of the data sheets."""

    name: str
    """The driver's name of it, without ``NVIDIA``."""
    accelerators: tuple[str, ...]
    """SkyPilot's names of it. A name that clouds give to several cards belongs to the slowest of them."""
    bf16: float
    """Dense bf16 FLOP/s, accumulated in float32."""
    fp8: float | None
    """The same in fp8; None where the card has no fp8."""
    memory: int
    """Bytes that the driver reports."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float | None
    """Bytes a second in one direction over NVLink; None where GPUs meet on PCIe."""
    capability: tuple[int, int]
    """Compute capability: (8, 9) is sm_89."""
    source: str
    """Data sheet or whitepaper, with the power limit."""

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that one thread block may ask for (CUDA programming guide, table of capabilities)."""
        return SHARED_MEMORY[self.capability]


SHARED_MEMORY = {(8, 0): 166_912, (8, 6): 101_376, (8, 9): 101_376, (9, 0): 232_448, (10, 0): 232_448, (12, 0): 101_376}
"""163, 99 and 227 KiB, by compute capability."""


def _gib(size: float) -> int:
    return int(size * (1 << 30))


GPUS = (
    # the bridges of H100 NVL join pairs only, so it has no link
    # name, accelerators, bf16, fp8, memory, bandwidth, link, capability, source
    GpuSpec("L40", ("L40",), 181e12, 362e12, _gib(44.39), 864e9, None, (8, 9), "L40 (300 W)"),
    GpuSpec("L40S", ("L40S",), 362e12, 733e12, _gib(44.39), 864e9, None, (8, 9), "L40S (350 W)"),
    GpuSpec("L4", ("L4",), 121e12, 242e12, _gib(21.95), 300e9, None, (8, 9), "L4 (72 W)"),
    GpuSpec("A10", ("A10",), 125e12, None, _gib(21.99), 600e9, None, (8, 6), "A10 (150 W)"),
    GpuSpec("A10G", ("A10G",), 70e12, None, _gib(21.99), 600e9, None, (8, 6), "A10G (AWS; 300 W)"),
    GpuSpec("A100-PCIE-40GB", ("A100",), 312e12, None, _gib(39.38), 1_555e9, None, (8, 0), "A100"),
    GpuSpec("A100-SXM4-40GB", ("A100-SXM",), 312e12, None, _gib(39.38), 1_555e9, 300e9, (8, 0), "A100"),
    GpuSpec("A100 80GB PCIe", ("A100-80GB",), 312e12, None, _gib(79.1), 1_935e9, None, (8, 0), "A100"),
    GpuSpec("A100-SXM4-80GB", ("A100-80GB-SXM",), 312e12, None, _gib(79.1), 2_039e9, 300e9, (8, 0), "A100"),
    GpuSpec("H100 PCIe", ("H100",), 756e12, 1_513e12, _gib(79.1), 2_000e9, None, (9, 0), "H100, PCIe (350 W)"),
    GpuSpec("H100 80GB HBM3", ("H100-SXM",), 989e12, 1_979e12, _gib(79.1), 3_350e9, 450e9, (9, 0), "H100, SXM (700 W)"),
    GpuSpec("H100 NVL", ("H100-NVL",), 835e12, 1_671e12, _gib(93), 3_900e9, None, (9, 0), "H100, NVL (400 W)"),
    GpuSpec("H200", ("H200", "H200-SXM"), 989e12, 1_979e12, _gib(139.7), 4_800e9, 450e9, (9, 0), "H200, SXM (700 W)"),
    GpuSpec("B200", ("B200",), 2_250e12, 4_500e12, 180 * 10**9, 8_000e9, 900e9, (10, 0), "DGX B200, an eighth"),
    GpuSpec("GeForce RTX 3090", ("RTX3090",), 71e12, None, _gib(23.68), 936e9, None, (8, 6), "Ampere GA102 (350 W)"),
    GpuSpec("GeForce RTX 4090", ("RTX4090",), 165e12, 330e12, _gib(23.61), 1_008e9, None, (8, 9), "Ada (450 W)"),
    GpuSpec(
        "GeForce RTX 5090", ("RTX5090",), 209e12, 419e12, _gib(31.36), 1_792e9, None, (12, 0), "RTX Blackwell (575 W)"
    ),
)


def of_device(name: str) -> GpuSpec | None:
    """The card with the driver's name ``name`` (``NVIDIA L40S``); None if unlisted, as MIG slices are."""
    return _BY_DEVICE.get(_plain(name).removeprefix("nvidia"))


def of_accelerator(name: str) -> GpuSpec | None:
    """The card with SkyPilot's name ``name`` (``L40``, ``A100-80GB``); None if unlisted."""
    return _BY_ACCELERATOR.get(name.lower())


def same(one: str, other: str) -> bool:
    """Whether two SkyPilot names mean the same card."""
    listed = of_accelerator(one)
    return one.lower() == other.lower() or (listed is not None and listed is of_accelerator(other))


class Properties(Protocol):
    """The fields of ``torch.cuda.get_device_properties`` that are used here."""

    @property
    def name(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def multi_processor_count(self) -> int: ...
    @property
    def clock_rate(self) -> int:
        """Maximum clock, kHz."""


OPERATIONS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}
"""Dense bf16 operations of one multiprocessor a clock, accumulated in float32, from the whitepapers of GA100, GA102,
AD102, GH100, GB100 and GB202; GeForce cards do half."""


def derived_bf16(device: Properties) -> float | None:
    """bf16 FLOP/s of an unlisted card: multiprocessors x clock x operations of its compute capability.

    The clock is the driver's maximum, which large products seldom keep, so the result is high (1,071e12 instead of
    989e12 for an H100 SXM) and an MFU from it low. None for an unknown compute capability.
    """
    operations = OPERATIONS.get((device.major, device.minor))
    if operations is None:
        return None
    if "GeForce" in device.name:
        operations //= 2
    return float(device.multi_processor_count * device.clock_rate * 1000 * operations)


def _plain(name: str) -> str:
    return "".join(name.lower().split())


_BY_DEVICE = {_plain(gpu.name): gpu for gpu in GPUS}
_BY_ACCELERATOR = {name.lower(): gpu for gpu in GPUS for name in gpu.accelerators}
