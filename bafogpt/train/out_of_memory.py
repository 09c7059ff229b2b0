"""Errors that say that a GPU's memory is full."""

from __future__ import annotations

TEXTS = ("out of memory", "alloc_failed", "cudaerrormemoryallocation")
"""In the words of torch, CUDA, Triton, cuBLAS (``CUBLAS_STATUS_ALLOC_FAILED``) and bitsandbytes, in small letters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so with its own class, or a library in words. Triton's "out of resource" is another thing."""
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error).lower() for text in TEXTS)
