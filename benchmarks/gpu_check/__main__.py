"""Check and measure this machine's GPU: ``./scripts/gpu-check``. One JSON line a part; exit code 1 if one is red.

The lines go to stdout and, where the environment has OUT, to $OUT/gpu_check.jsonl, too. The most valuable parts come
first; what no longer fits into ``--seconds`` is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.report import Options
from benchmarks.gpu_check.runner import Part, run

HERE = "benchmarks.gpu_check"


def part(name: str, function: str, usual: float, limit: float, **arguments: Any) -> Part:
    return Part(name=name, function=f"{HERE}.{function}", usual=usual, limit=limit, arguments=arguments)


def row(micro_batch: int, recompute: str, **more: Any) -> Part:
    """A row of throughput. ``usual`` is mostly the compilation of one block."""
    kind = "autocast " if more.get("kind") == "autocast" else ""
    return part(
        f"throughput {kind}{micro_batch} {recompute}",
        "speed:throughput",
        40,
        120,
        micro_batch=micro_batch,
        recompute=recompute,
        **more,
    )


PARTS = (
    part("machine", "machine:machine", 15, 60),
    row(2, "selective", profiled=True),
    row(4, "full"),
    row(1, "full", kind="autocast"),
    part("qlora adamw", "speed:qlora", 40, 100, optimizer="adamw"),
    part("equal", "correctness:equal", 90, 200),
    part("resume", "correctness:resume", 50, 90),
    part("float8", "speed:float8", 50, 120),
    part("flex", "kernels:flex", 60, 150),
    part("generate", "correctness:answers", 60, 120),
    part("loss", "kernels:loss", 20, 60),
    part("compiled", "speed:compiled", 50, 120),
    row(4, "selective"),
    row(8, "full"),
    part("qlora adamw8bit-paged", "speed:qlora", 40, 100, optimizer="adamw8bit-paged"),
    part("mfu", "target:mfu", 0, 20),
)
"""``usual`` as measured on an H100 with 16 cores, where that part was run; a machine with fewer compiles longer."""
TINY_PARTS = tuple(
    Part(name=each.name, function=each.function, usual=1 if each.usual else 0, limit=120, arguments=each.arguments)
    for each in PARTS
    if each.name not in ("throughput 2 selective", "throughput 8 full", "throughput 4 selective", "throughput 1 full")
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU: only shows that the parts run")
    parser.add_argument(
        "--only", default="", metavar="PART,…", help="these parts: the first word of a name, or all of it"
    )
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together (%(default)s)")
    parser.add_argument("--layers", type=int, default=Options.layers, help="of the large models (%(default)s)")
    given = parser.parse_args()
    parts = TINY_PARTS if given.tiny else PARTS
    if given.only:
        wanted = {each.strip() for each in given.only.split(",")}
        known = {name for each in parts for name in (each.name, each.name.split()[0])}
        if wanted - known:
            parser.error(f"there is no part '{min(wanted - known)}'; the parts are {', '.join(p.name for p in parts)}")
        parts = tuple(each for each in parts if wanted & {each.name, each.name.split()[0]})
    file = Path(os.environ["OUT"]) / "gpu_check.jsonl" if os.environ.get("OUT") else None

    def say(line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        if file is not None:
            with file.open("a", encoding="utf-8") as out:
                out.write(text + "\n")

    options = Options(tiny=given.tiny, layers=given.layers)
    lines = run(parts, options=options, seconds=given.seconds, say=say)
    return int(any(line["ok"] is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
