"""Option and argument types, each defined once, so that a word means the same in every command.

A command takes them as annotations and gives the default: ``json: JsonOption = False``, ``gpus: GpusOption = None``,
``overrides: SetOption = None``. Arguments have no default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bafogpt.core.errors import UsageError


def _names_only(names: list[str] | None) -> list[str] | None:
    """Refuse ``NAME=value``: it would show in the process list and the shell's history. The value is not echoed."""
    for name in names or ():
        if "=" in name:
            word = name.partition("=")[0]
            raise UsageError(
                f"--env {word}=… gives a value; it takes the name only", f"export {word}, then --env {word}"
            )
    return names


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only, and no messages.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would run and what it costs; start nothing.")]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it has started.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until it ends.")]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, e.g. train.seed=7. Repeatable."),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME",
        callback=_names_only,
        help="Hand this environment variable to the job. The name only: its value is read here. Repeatable.",
    ),
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus", metavar="TYPE[:COUNT]", help="Accelerators, e.g. L40:4 or H100:8.")
]
InfraOption = Annotated[
    str | None,
    typer.Option("--infra", metavar="WHERE", help="Where to run: local, or a SkyPilot infra such as runpod or slurm."),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image", metavar="REF", help="Container image to run in, in place of the one that is pinned; none: as it is."
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", "-n", metavar="NAME", help="Name of the run; default: made from the job's.")
]
BucketOption = Annotated[
    str | None, typer.Option("--bucket", metavar="URL", help="Bucket to use in place of the one in the settings.")
]

BandwidthOption = Annotated[
    str | None,
    typer.Option("--max-bandwidth", metavar="RATE", help="At most so many bytes a second: 500k, 5M, 1.5G."),
]

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's name (jobs/NAME.yaml) or the path of one.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, as 'bafogpt runs ls' shows it.")]

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model folder: config.json, safetensors, the tokenizer's files.")
]
OwnTokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        "-t",
        metavar="T",
        help="A tokenizer.json, a folder with one, or 'bytes'; default: the model's own.",
    ),
]
StyleOption = Annotated[
    str, typer.Option("--style", metavar="NAME", help="Prompt style: chat (the model's own template), alpaca, plain.")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="WHERE", help="cpu, cuda, or auto.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16 or float16; default: the model's own.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer, in tokens.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0 takes the likeliest token always; more is more various.")
]
TopPOption = Annotated[float, typer.Option("--top-p", metavar="P", help="The likeliest tokens of this share only.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", metavar="N", help="The N likeliest tokens only.")]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same choices again.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text. Repeatable.")
]
