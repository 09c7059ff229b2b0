"""Environment variables through which a launch configures the machine."""

from __future__ import annotations

GPUS = "BAFOGPT_GPUS"
"""The task's variable in which the launch says what it asked for."""
