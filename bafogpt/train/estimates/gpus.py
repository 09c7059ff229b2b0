"""The GPUs that jobs run on: peaks, memory and bandwidths, from the vendor's data sheets. No torch here.

Peaks are dense matrix products with float32 accumulation; data sheets also print twice that, for sparse ones, and
GeForce cards reach half of it with float32 accumulation. Memory is what ``torch.cuda`` reports, the smallest figure
seen in public out-of-memory messages: ECC and the driver take 1 to 2 GB of what is on the box (of the A100 and B200
less is known, and a round figure stands here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card."""

    name: str
    """As the driver has it, without ``NVIDIA``."""
    accelerators: tuple[str, ...]
    """SkyPilot's names of it. A name that clouds give to several cards belongs to the slowest of them."""
    bf16: float
    """Dense bf16 FLOP/s, accumulated in float32."""
    fp8: float | None
    """The same in fp8; None where the card has none."""
    memory: int
    """Bytes that the driver reports."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float | None
    """Bytes a second in one direction over NVLink; None where GPUs meet on PCIe."""
    capability: tuple[int, int]
    """Compute capability: (8, 9) is sm_89."""
    source: str

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that one thread block may ask for (CUDA programming guide, table of capabilities)."""
        return SHARED_MEMORY[self.capability]


SHARED_MEMORY = {
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (12, 0): 101_376,
}
"""163, 99 and 227 KiB, by compute capability."""

GPUS = (
    Gpu(
        name="L40",
        accelerators=("L40",),
        bf16=181e12,
        fp8=362e12,
        memory=int(44.39 * GIB),
        bandwidth=864e9,
        link=None,
        capability=(8, 9),
        source="NVIDIA L40 data sheet (300 W)",
    ),
    Gpu(
        name="L40S",
        accelerators=("L40S",),
        bf16=362e12,
        fp8=733e12,
        memory=int(44.39 * GIB),
        bandwidth=864e9,
        link=None,
        capability=(8, 9),
        source="NVIDIA L40S data sheet (350 W)",
    ),
    Gpu(
        name="L4",
        accelerators=("L4",),
        bf16=121e12,
        fp8=242e12,
        memory=int(21.95 * GIB),
        bandwidth=300e9,
        link=None,
        capability=(8, 9),
        source="NVIDIA L4 data sheet (72 W)",
    ),
    Gpu(
        name="A10",
        accelerators=("A10",),
        bf16=125e12,
        fp8=None,
        memory=int(21.99 * GIB),
        bandwidth=600e9,
        link=None,
        capability=(8, 6),
        source="NVIDIA A10 data sheet (150 W)",
    ),
    Gpu(
        name="A10G",
        accelerators=("A10G",),
        bf16=70e12,
        fp8=None,
        memory=int(21.99 * GIB),
        bandwidth=600e9,
        link=None,
        capability=(8, 6),
        source="NVIDIA A10G data sheet (AWS; 300 W)",
    ),
    Gpu(
        name="A100-PCIE-40GB",
        accelerators=("A100",),
        bf16=312e12,
        fp8=None,
        memory=int(39.38 * GIB),
        bandwidth=1_555e9,
        link=None,
        capability=(8, 0),
        source="NVIDIA A100 data sheet",
    ),
    Gpu(
        name="A100-SXM4-40GB",
        accelerators=("A100-SXM",),
        bf16=312e12,
        fp8=None,
        memory=int(39.38 * GIB),
        bandwidth=1_555e9,
        link=300e9,
        capability=(8, 0),
        source="NVIDIA A100 data sheet",
    ),
    Gpu(
        name="A100 80GB PCIe",
        accelerators=("A100-80GB",),
        bf16=312e12,
        fp8=None,
        memory=int(79.1 * GIB),
        bandwidth=1_935e9,
        link=None,
        capability=(8, 0),
        source="NVIDIA A100 data sheet",
    ),
    Gpu(
        name="A100-SXM4-80GB",
        accelerators=("A100-80GB-SXM",),
        bf16=312e12,
        fp8=None,
        memory=int(79.1 * GIB),
        bandwidth=2_039e9,
        link=300e9,
        capability=(8, 0),
        source="NVIDIA A100 data sheet",
    ),
    Gpu(
        name="H100 PCIe",
        accelerators=("H100",),
        bf16=756e12,
        fp8=1_513e12,
        memory=int(79.1 * GIB),
        bandwidth=2_000e9,
        link=None,
        capability=(9, 0),
        source="NVIDIA H100 data sheet, PCIe (350 W)",
    ),
    Gpu(
        name="H100 80GB HBM3",
        accelerators=("H100-SXM",),
        bf16=989e12,
        fp8=1_979e12,
        memory=int(79.1 * GIB),
        bandwidth=3_350e9,
        link=450e9,
        capability=(9, 0),
        source="NVIDIA H100 data sheet, SXM (700 W)",
    ),
    Gpu(
        name="H100 NVL",
        accelerators=("H100-NVL",),
        bf16=835e12,
        fp8=1_671e12,
        memory=93 * GIB,
        bandwidth=3_900e9,
        link=None,  # bridges join pairs only
        capability=(9, 0),
        source="NVIDIA H100 data sheet, NVL (400 W)",
    ),
    Gpu(
        name="H200",
        accelerators=("H200", "H200-SXM"),
        bf16=989e12,
        fp8=1_979e12,
        memory=int(139.7 * GIB),
        bandwidth=4_800e9,
        link=450e9,
        capability=(9, 0),
        source="NVIDIA H200 data sheet, SXM (700 W)",
    ),
    Gpu(
        name="B200",
        accelerators=("B200",),
        bf16=2_250e12,
        fp8=4_500e12,
        memory=180_000_000_000,
        bandwidth=8_000e9,
        link=900e9,
        capability=(10, 0),
        source="NVIDIA DGX B200 data sheet, an eighth of it",
    ),
    Gpu(
        name="GeForce RTX 3090",
        accelerators=("RTX3090",),
        bf16=71e12,
        fp8=None,
        memory=int(23.68 * GIB),
        bandwidth=936e9,
        link=None,
        capability=(8, 6),
        source="NVIDIA Ampere GA102 whitepaper (350 W)",
    ),
    Gpu(
        name="GeForce RTX 4090",
        accelerators=("RTX4090",),
        bf16=165e12,
        fp8=330e12,
        memory=int(23.61 * GIB),
        bandwidth=1_008e9,
        link=None,
        capability=(8, 9),
        source="NVIDIA Ada whitepaper (450 W)",
    ),
    Gpu(
        name="GeForce RTX 5090",
        accelerators=("RTX5090",),
        bf16=209e12,
        fp8=419e12,
        memory=int(31.36 * GIB),
        bandwidth=1_792e9,
        link=None,
        capability=(12, 0),
        source="NVIDIA RTX Blackwell whitepaper (575 W)",
    ),
)


def of_device(name: str) -> Gpu | None:
    """The card that a driver calls ``name`` (``NVIDIA L40S``); None for others, a MIG slice included."""
    return _BY_DEVICE.get(_plain(name).removeprefix("nvidia"))


def of_accelerator(name: str) -> Gpu | None:
    """The card that SkyPilot calls ``name`` (``L40``, ``A100-80GB``); None for one that is not listed."""
    return _BY_ACCELERATOR.get(name.lower())


def same(one: str, other: str) -> bool:
    """Whether two of SkyPilot's names mean the same card."""
    listed = of_accelerator(one)
    return one.lower() == other.lower() or (listed is not None and listed is of_accelerator(other))


class Properties(Protocol):
    """What ``torch.cuda.get_device_properties`` says of a device."""

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
        """kHz at most."""


OPERATIONS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}
"""Dense bf16 operations of one multiprocessor a clock, accumulated in float32, from the whitepapers of GA100, GA102,
AD102, GH100, GB100 and GB202; GeForce cards do half of that."""


def derived_bf16(device: Properties) -> float | None:
    """bf16 FLOP/s of a card that is not listed: multiprocessors x clock x operations of its compute capability.

    The clock is the highest that the driver allows, which a large product seldom keeps: the result is on the high side
    (an H100 SXM would be 1,071e12 instead of 989e12), and an MFU from it on the low side. None where the compute
    capability is not known.
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
