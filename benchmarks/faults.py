"""The fault bench: a run that is killed, and a line that does harm, against a run that was left undisturbed.

    ./scripts/bench faults --kills 1000 --seed 1             no sample lost, repeated or out of order, weights equal
    ./scripts/bench faults --kills 25 --torch 0 --faults 20  a minute's worth

Kills: the supervisor and its trainers are real processes on a real S3 server; half of the kills come at random moments,
half right before a file operation or at a stage of a request. Faults: checkpoints and streams go through a proxy that
answers 5xx, resets, stalls, truncates and flips bits. Everything is drawn from the seed, which is printed. Exit code 1
when anything was wrong, or when too few of the kills fell into a save.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults.bad_network import NetworkCampaign, NetworkTally
from tests.faults.bench import Bench, start_bench
from tests.faults.campaign import Campaign, Table

console = Console(stderr=False)


def main() -> int:
    options = _options()
    logging.getLogger("bafogpt").setLevel(logging.ERROR)  # damage is meant
    console.print(f"bench faults: seed {options.seed}")
    wrong: list[str] = []
    report: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="bafogpt-faults-") as folder, start_bench(Path(folder)) as bench:
        for title, count, torch in (("kills", options.kills, False), ("kills, torch trainer", options.torch, True)):
            if count:
                started = time.monotonic()
                table = _kill(bench, options.seed, count, options.parallel, torch)
                report[title] = _report_kills(title, table, time.monotonic() - started)
                wrong += table.verdict()
        if options.faults:
            tally = NetworkCampaign(bench).run(options.faults, options.seed, _progress_of_faults)
            report["faults"] = _report_faults(tally)
            wrong += tally.problems
    report["problems"] = wrong
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    for each in wrong:
        console.print(each, style="red", markup=False)
    again = f"./scripts/bench faults --kills {options.kills} --torch {options.torch} --faults {options.faults}"
    console.print(f"{'FAILED' if wrong else 'passed'}; again: {again} --seed {options.seed}", soft_wrap=True)
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills of runs whose trainer needs no torch")
    parser.add_argument("--torch", type=int, default=6, help="kills of runs with the real trainer")
    parser.add_argument("--faults", type=int, default=200, help="scripts of faults on the line")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="draws everything")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--json", type=Path, help="write the result here too")
    return parser.parse_args()


def _kill(bench: Bench, seed: int, count: int, parallel: int, torch: bool) -> Table:
    last = 0.0

    def progress(table: Table) -> None:
        nonlocal last
        if time.monotonic() - last >= 5.0:
            last = time.monotonic()
            console.print(f"  {len(table.done_kills)} of {count} kills, {table.in_save} in a save, {table.runs} runs")

    return Campaign(seed, bench, torch=torch).run(count, parallel=parallel, progress=progress)


def _progress_of_faults(tally: NetworkTally) -> None:
    if tally.scripts % 20 == 0:
        console.print(f"  {tally.scripts} scripts, {sum(tally.faults.values())} faults")


def _report_kills(title: str, table: Table, seconds: float) -> dict[str, Any]:
    kills = len(table.done_kills)
    grid = Grid("victim", "killed", "kills", "in a save", title=title)
    for row in table.rows():
        grid.add_row(row["victim"], row["point"], str(row["kills"]), str(row["in_save"]))
    console.print(grid)
    share = table.in_save / kills if kills else 0.0
    moments = sum(each.kill.how == "moment" for each in table.done_kills)
    console.print(
        f"{kills} kills in {table.runs} runs, {moments} at random moments, {table.in_save} ({share:.0%}) in a save; "
        f"{len(table.problems)} problems; {seconds:.0f} s",
        soft_wrap=True,
    )
    return {
        "kills": kills,
        "runs": table.runs,
        "at_random_moments": moments,
        "in_save": table.in_save,
        "seconds": round(seconds, 1),
        "points": table.rows(),
    }


def _report_faults(tally: NetworkTally) -> dict[str, Any]:
    grid = Grid("fault", "times", title="faults on the line")
    for fault, count in sorted(tally.faults.items()):
        grid.add_row(fault, str(count))
    console.print(grid)
    console.print(
        f"{tally.scripts} scripts: the newest checkpoint found whole in {tally.found}; "
        f"{tally.manifests} manifests, {tally.unsound} unsound; "
        f"{tally.samples} samples read; {len(tally.problems)} problems"
    )
    return vars(tally)


if __name__ == "__main__":
    sys.exit(main())
