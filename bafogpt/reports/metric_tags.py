"""The tag of each metric in TensorBoard, Weights & Biases and MLflow.

=================================  ==========================================================================
``train/…``, ``validation/…``      of every step, of every validation
``train/stage/NAME/loss``          the training loss again, by stage of the curriculum
``validation/stage/NAME/…``        ``loss`` and ``bits_per_byte`` of each stage's own text
``validation/language/NAME/…``     the same of each language; of texts in two of them, ``eng_zul``
``speed/…``                        of every step
``machine/…``, ``machine/node1/…`` from the system stats: CPU, memory, disk, network, each GPU
``cost/usd``                       from the system stats: what the run has cost so far
=================================  ==========================================================================

All are plotted over the optimizer's steps.
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
"""Fields of a metrics line and their tags."""
GROUPS = {"validation_stages": "validation/stage", "validation_languages": "validation/language"}
"""Fields that map names to numbers, and their groups of tags."""
GROUP_METRICS = {"loss": "loss", "bpb": "bits_per_byte"}
SYSTEM_STATS = {
    "cpu": ("cpu", 1.0),
    "memory_used": ("memory_used_GB", 1e9),
    "disk_used": ("disk_used_GB", 1e9),
    "sent_per_s": ("sent_per_s", 1.0),
    "received_per_s": ("received_per_s", 1.0),
}
"""Fields of a system stats line: their tags, and their units."""
GPU = {
    "utilization": ("utilization", 1.0),
    "memory_used": ("memory_used_GB", 1e9),
    "power": ("power", 1.0),
    "temperature": ("temperature", 1.0),
}
"""The same for each GPU in it."""


def of_metrics(line: JsonObject) -> dict[str, float]:
    """Tags and numbers of a line of :mod:`bafogpt.train.metrics`. Numbers that are not finite are left out."""
    found = {tag: value for key, tag in METRICS.items() if (value := get_float(line, key)) is not None}
    stage, loss = line.get("stage"), get_float(line, "loss")
    if stage and loss is not None:
        found[f"train/stage/{part(str(stage))}/loss"] = loss
    for field, group in GROUPS.items():
        for name, numbers in _mapping(line.get(field)).items():
            for key, word in GROUP_METRICS.items():
                if (value := get_float(_mapping(numbers), key)) is not None:
                    found[f"{group}/{part(name)}/{word}"] = value
    return found


def of_system_stats(line: JsonObject) -> dict[str, float]:
    """Tags and numbers of a line of :mod:`bafogpt.agent.system_stats`."""
    node = get_int(line, "node") or 0
    at = f"machine/node{node}" if node else "machine"
    found = _scaled(line, SYSTEM_STATS, at) | _scaled(line, {"usd": ("usd", 1.0)}, "cost")
    for index, gpu in enumerate(line.get("gpus") or ()):
        found |= _scaled(gpu, GPU, f"{at}/gpu{index}")
    return found


def part(name: str) -> str:
    """A stage's or a language's name as one part of a tag, in characters that every service accepts."""
    return re.sub(r"[^\w .-]|^\.+$", "_", name)


def merge_by_time(*feeds: Iterable[JsonObject]) -> list[tuple[int, JsonObject]]:
    """The lines of several feeds in the order of time, each with the index of its feed.

    The order within a feed is kept, even if the clock of its next machine is behind.
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
    """The value, or an empty mapping for an invalid one."""
    return value if isinstance(value, dict) else {}
