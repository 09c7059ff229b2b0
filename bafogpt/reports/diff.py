"""What differs between two runs: job, data, code, image, versions, machine, results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bafogpt.core import schema
from bafogpt.reports.summary import Summary, summarise
from bafogpt.runs.store import RunStore

SECTIONS = ("job", "data", "code", "image", "versions", "machine", "results")
"""In the order in which they are shown: what went in, where it ran, what came out."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not the same; None is a run that has no such thing."""

    section: str
    key: str
    a: Any
    b: Any

    @property
    def change(self) -> float | None:
        """By what share of ``a`` a number has changed: 0.1 is a tenth more. None for what is no number."""
        numbers = [each for each in (self.a, self.b) if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(numbers) < 2 or not numbers[0]:
            return None
        return float(numbers[1] / numbers[0] - 1)


def differences(store: RunStore, a: str, b: str) -> list[Difference]:
    """Every difference, section by section. Raises :class:`~bafogpt.core.errors.RunNotFoundError`."""
    of_a, of_b = (facts(summarise(store, name)) for name in (a, b))
    return [
        Difference(section=section, key=key, a=of_a[section].get(key), b=of_b[section].get(key))
        for section in SECTIONS
        for key in [*of_a[section], *(each for each in of_b[section] if each not in of_a[section])]
        if of_a[section].get(key) != of_b[section].get(key)
    ]


def facts(summary: Summary) -> dict[str, dict[str, Any]]:
    """All that is compared of a run: section, dotted key, value."""
    record = summary.record
    best = summary.best_validation
    last = dict(record.machines[-1]) if record.machines else {"host": record.host, "infra": record.infra}
    last.pop("attempt", None)
    return {
        "job": schema.flatten({"trainer": record.trainer, **record.job}),
        "data": schema.flatten(record.data),
        "code": {"git": record.git},
        "image": {"image": record.image, "digest": record.image_digest, **schema.flatten(record.image_labels)},
        "versions": dict(record.versions),
        "machine": {**last, "price_per_hour": record.price_per_hour, "gpus_asked": record.gpus},
        "results": {
            "state": record.state,
            "steps": record.step,
            "samples": summary.samples,
            "tokens": summary.tokens,
            "first_loss": summary.first_loss,
            "final_loss": summary.final_loss,
            "best_validation_loss": best[1] if best else None,
            "tokens_per_s": summary.tokens_per_s,
            "mfu": summary.mfu,
            "training_seconds": summary.training_seconds,
            "machine_hours": round(summary.usage.hours, 4),
            "usd": round(summary.usage.usd, 4),
            "attempts": record.attempts,
            "restarts": record.restarts,
        },
    }
