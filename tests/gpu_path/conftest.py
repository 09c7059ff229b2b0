"""The CUDA build, made once a session."""

from __future__ import annotations

import os

import pytest

from tests.gpu_path import cuda_build


@pytest.fixture(scope="session")
def gpu() -> cuda_build.CudaBuild:
    """The CUDA build of torch on a GPU that computes nothing."""
    try:
        return cuda_build.prepare()
    except cuda_build.UnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
