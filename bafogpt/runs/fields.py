"""Fields of records in the bucket. They are foreign: any field may be missing or of another type."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]


def get_float(record: JsonObject, key: str) -> float | None:
    """The finite number at ``key``, or None for anything else."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def get_int(record: JsonObject, key: str) -> int | None:
    """The number at ``key`` as an integer, or None."""
    value = get_float(record, key)
    return None if value is None else int(value)
