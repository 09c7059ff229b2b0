"""``bafogpt cloud doctor``: check that everything a launch needs is in place."""

from __future__ import annotations

from typing import Annotated

import typer

from bafogpt.cli.console.options import MachineFlags
from bafogpt.cli.console.output import Output

MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED"}


def doctor(
    flags: MachineFlags,
    out: Output,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="Job to check: its name (jobs/NAME.yaml), or path of a file.")
    ] = "pretrain",
) -> None:
    """Check that everything a launch of JOB needs is in place, and print a hint for each problem. Exit code 1 if a
    launch would fail."""
    from bafogpt.core import settings
    from bafogpt.launch import doctor as checks

    context = checks.CheckContext.of(job, settings.load({"bucket": flags.bucket}), gpus=flags.gpus, infra=flags.infra)
    found = []
    for each in checks.run_checks(context):
        found.append(each)
        if not out.json and not out.quiet:
            print(f"{MARKS[each.state]:<8} {each.name:<12} {each.message}", flush=True)
            if each.hint:
                print(f"{'':<8} {'':<12} → {each.hint}", flush=True)
    failed = [each.name for each in found if each.state == "failed"]
    if out.json:
        out.result({"ok": not failed, "infra": context.infra, "checks": [each.to_dict() for each in found]})
    elif out.quiet:
        for name in failed:
            print(name)
    else:
        would = f"would fail: {', '.join(failed)}" if failed else "has everything it needs"
        out.say(f"a launch on {context.infra} {would}")
    if failed:
        raise typer.Exit(1)
