"""The fastest row of the throughput parts, and whether it meets the target. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_check.report import Report

MFU = 0.40
"""Of Gemma-2-2B with 296,000 ids in bf16, of the data sheet's peak."""


def best_row(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The findings of the throughput part with the most tokens a second, with its name as ``row``."""
    rows = [
        {**line["found"], "row": line["part"]}
        for line in lines
        if line["part"].startswith("throughput") and "tokens_per_s" in line["found"]
    ]
    return max(rows, key=lambda row: float(row["tokens_per_s"]), default=None)


def mfu(report: Report) -> None:
    """Red below the target, and above what a card can do; toy sizes have no target."""
    row = best_row(report.earlier)
    if row is None:
        report.note("target", "no throughput was measured", ok=report.tiny)
        return
    met = report.tiny or MFU <= float(row["mfu"]) <= 1
    target = None if report.tiny else MFU
    report.note("target", {"mfu": row["mfu"], "target": target, "row": row["row"]}, ok=met)
