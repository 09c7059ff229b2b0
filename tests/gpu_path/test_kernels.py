"""The kernels of attention and loss fit each card's shared memory, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.core.errors import ConfigError
from bafogpt.model import flex
from tests.gpu_path.cuda_build import CudaBuild

KIB = 1024
CARDS = {"A10": 99 * KIB, "L40": 99 * KIB, "RTX5090": 99 * KIB, "H100": 227 * KIB}
"""sm_86, sm_89, sm_120 and sm_90, with the shared memory that a block may have there."""


def fresh(folder: Path) -> dict[str, str]:
    """No kernel from an earlier run: one that is not compiled is not seen."""
    return {
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }


@pytest.mark.parametrize(
    "card", ["L40", *(pytest.param(each, marks=pytest.mark.slow) for each in CARDS if each != "L40")]
)
def test_attention_with_a_head_of_256_and_the_loss_compile_within_the_card(
    gpu: CudaBuild, card: str, tmp_path: Path
) -> None:
    found = gpu.run("tests.gpu_path.probes.kernels", "256", "bfloat16", card=card, more=fresh(tmp_path))

    assert found["errors"] == {}
    assert found["limit"] == CARDS[card]
    directions = ["backward" in name for name, _ in found["attention"]]
    assert directions.count(True) >= 3 and directions.count(False) >= 3, found
    assert max(shared for _, shared in found["attention"]) <= CARDS[card]
    assert found["masks"] == {"2048": 1, "6144": 2}, "one mask where the window is no shorter than the sample"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head", [64, 128, 256])
def test_other_heads_and_float32_compile_within_an_a10(gpu: CudaBuild, head: int, dtype: str, tmp_path: Path) -> None:
    found = gpu.run("tests.gpu_path.probes.kernels", str(head), dtype, card="A10", more=fresh(tmp_path))

    assert found["errors"] == {}


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head", [192, 256, 512])
@pytest.mark.parametrize("shared", [64 * KIB, 99 * KIB, 163 * KIB, 227 * KIB])
def test_block_sizes_fit_the_shared_memory_or_are_refused(head: int, itemsize: int, shared: int) -> None:
    row = (256 if head <= 256 else 512) * itemsize
    smallest = max(
        flex.forward_bytes(row, itemsize, *flex.FORWARD[-1]), flex.backward_bytes(row, itemsize, *flex.BACKWARD[-1])
    )
    if shared == flex.HOPPER_SHARED and row == flex.HOPPER_ROW:
        assert flex.block_sizes(head, itemsize, shared) == flex.HOPPER
    elif shared >= flex.LARGE_SHARED and row <= flex.LARGE_ROW:
        assert flex.block_sizes(head, itemsize, shared) is None
    elif smallest > shared:
        with pytest.raises(ConfigError, match="does not fit the") as refused:
            flex.block_sizes(head, itemsize, shared)
        assert refused.value.hint
    else:
        sizes = flex.block_sizes(head, itemsize, shared)
        assert sizes is not None
        m, n, stages, _, m1, n1, m2, n2, backward_stages, _ = sizes
        assert flex.forward_bytes(row, itemsize, m, n, stages) <= shared
        assert (m2, n2) == (n1, m1)
        assert flex.backward_bytes(row, itemsize, m1, n1, backward_stages) <= shared
