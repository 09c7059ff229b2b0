"""Liger's kernel, as the loss calls it on a GPU, against the definition; interpreted on the CPU."""

from __future__ import annotations

from tests.gpu_path.cuda_build import CudaBuild


def test_losses_and_gradients_by_ligers_kernel_are_those_of_the_definition(gpu: CudaBuild) -> None:
    found = gpu.run("tests.gpu_path.probes.liger", more={"TRITON_INTERPRET": "1"})

    assert len(found) == 8
    for case, relative in found.items():
        assert max(relative) <= (2e-6 if case.startswith("float32") else 2e-2), (case, relative)
