"""Which number of a run's records goes under which tag: the one place for TensorBoard, Weights & Biases and MLflow.

=================================  ==========================================================================
``train/…``, ``validation/…``      of every step, of every validation
``train/stage/NAME/loss``          the training loss again, by stage of the curriculum
``validation/stage/NAME/…``        ``loss`` and ``bits_per_byte`` of each stage's own text
``validation/language/NAME/…``     the same of each language; of texts in two of them, ``eng_zul``
``speed/…``                        of every step
``machine/…``, ``machine/node1/…`` from the system stats: CPU, memory, disk, network, each GPU
``cost/usd``                       from the system stats: what the run has cost so far
=================================  ==========================================================================

All of them lie over the optimizer's steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bafogpt.runs.fields import JsonObject, get_float, get_int

METRICS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "tokens": "train/tokens",
    "validation_loss": "validation/loss",
    "validation_bpb": "validation/bits_per_byte",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
}
"""Fields of a metrics line, and the tags that they become."""
PARTS = {"validation_stages": "validation/stage", "validation_languages": "validation/language"}
"""Fields with a mapping from a name to its numbers, and the groups that they become."""
OF_A_PART = {"loss": "loss", "bpb": "bits_per_byte"}
VITALS = {
    "cpu": ("cpu", 1.0),
    "memory_used": ("memory_used_GB", 1e9),
    "disk_used": ("disk_used_GB", 1e9),
    "sent_per_s": ("sent_per_s", 1.0),
    "received_per_s": ("received_per_s", 1.0),
}
"""Fields of a system_stats line: what the tag is called, and what the number is divided by."""
GPU = {
    "utilization": ("utilization", 1.0),
    "memory_used": ("memory_used_GB", 1e9),
    "power": ("power", 1.0),
    "temperature": ("temperature", 1.0),
}
"""The same of each GPU in it."""


def of_metrics(line: JsonObject) -> dict[str, float]:
    """Tags and numbers of a line of :mod:`bafogpt.train.metrics`. What is no finite number has no tag."""
    found = {tag: value for key, tag in METRICS.items() if (value := get_float(line, key)) is not None}
    stage, loss = line.get("stage"), get_float(line, "loss")
    if stage and loss is not None:
        found[f"train/stage/{part(str(stage))}/loss"] = loss
    for field, group in PARTS.items():
        for name, told in _mapping(line.get(field)).items():
            for key, word in OF_A_PART.items():
                if (value := get_float(_mapping(told), key)) is not None:
                    found[f"{group}/{part(name)}/{word}"] = value
    return found


def of_system_stats(line: JsonObject) -> dict[str, float]:
    """Tags and numbers of a line of :mod:`bafogpt.agent.system_stats`."""
    node = get_int(line, "node") or 0
    at = f"machine/node{node}" if node else "machine"
    found = _scaled(line, VITALS, at) | _scaled(line, {"usd": ("usd", 1.0)}, "cost")
    for index, gpu in enumerate(line.get("gpus") or ()):
        found |= _scaled(gpu, GPU, f"{at}/gpu{index}")
    return found


def part(name: str) -> str:
    """A stage's or a language's name as one part of a tag, in characters that every service takes."""
    return re.sub(r"[^\w .-]|^\.+$", "_", name)


def merge_by_time(*feeds: Iterable[JsonObject]) -> list[tuple[int, JsonObject]]:
    """The lines of several feeds as they came, each with the number of its feed.

    No line comes before the one above it in its own feed: the clock of the next machine may be behind.
    """
    found: list[tuple[float, int, JsonObject]] = []
    for index, feed in enumerate(feeds):
        latest = 0.0
        for line in feed:
            latest = max(latest, get_float(line, "time") or 0.0)
            found.append((latest, index, line))
    found.sort(key=lambda each: each[0])
    return [(index, line) for _, index, line in found]


def _scaled(line: JsonObject, fields: Mapping[str, tuple[str, float]], at: str) -> dict[str, float]:
    return {
        f"{at}/{word}": value / unit
        for key, (word, unit) in fields.items()
        if (value := get_float(line, key)) is not None
    }


def _mapping(value: Any) -> dict[str, Any]:
    """The value, or nothing where a line is odd."""
    return value if isinstance(value, dict) else {}
