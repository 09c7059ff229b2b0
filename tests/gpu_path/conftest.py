"""The environment of the GPU path, made once a session."""

from __future__ import annotations

import os

import pytest

from tests.gpu_path import place


@pytest.fixture(scope="session")
def gpu() -> place.Place:
    """The CUDA build of torch on a GPU that computes nothing."""
    try:
        return place.prepare()
    except place.UnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
