"""``bafogpt cloud doctor``: would a launch work, and what mends it where it would not?"""

from __future__ import annotations

from typing import Annotated

import typer

from bafogpt.cli.console.options import BucketOption, GpusOption, InfraOption, JsonOption, QuietOption
from bafogpt.cli.console.output import Output

MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED"}

CheckedJobArgument = Annotated[str, typer.Argument(metavar="[JOB]", help="The job to be launched.")]


def doctor(
    job: CheckedJobArgument = "pretrain",
    gpus: GpusOption = None,
    infra: InfraOption = None,
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Try everything that a launch needs, and say what mends it. Exit code 1 when something would stop a launch."""
    from bafogpt.core import settings
    from bafogpt.launch import doctor as checks

    out = Output.of(json=json, quiet=quiet)
    context = checks.CheckContext.of(job, settings.load({"bucket": bucket}), gpus=gpus, infra=infra)
    found = []
    for each in checks.run_checks(context):
        found.append(each)
        if not json and not quiet:
            print(f"{MARKS[each.state]:<8} {each.name:<12} {each.message}", flush=True)
            if each.hint:
                print(f"{'':<8} {'':<12} → {each.hint}", flush=True)
    bad = [each.name for each in found if each.state == "failed"]
    if json:
        out.result({"ok": not bad, "infra": context.infra, "checks": [each.to_dict() for each in found]})
    elif quiet:
        for name in bad:
            print(name)
    elif bad:
        out.say(f"a launch on {context.infra} would be stopped by: {', '.join(bad)}")
    else:
        out.say(f"nothing stops a launch on {context.infra}")
    if bad:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Put the command of this module under ``bafogpt cloud``."""
    app.command("doctor")(doctor)
