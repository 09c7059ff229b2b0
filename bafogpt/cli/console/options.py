"""Option and argument types, and groups of options, each defined once: an option means the same in every command.

A command takes a type as an annotation and gives the default, ``step: StepOption = None``, or takes a whole group,
``options: LaunchFlags`` (see :mod:`bafogpt.cli.console.app`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from bafogpt.launch.plan import LaunchOptions
    from bafogpt.model.chat_model import ChatModel
    from bafogpt.model.generate import Sampling
    from bafogpt.storage.transfer.bandwidth import Bandwidth


def _names_only(names: list[str] | None) -> list[str] | None:
    """Refuse ``NAME=value``: it would show in the process list and the shell's history. The value is not echoed."""
    for name in names or ():
        if "=" in name:
            word = name.partition("=")[0]
            raise UsageError(
                f"--env {word}=… gives a value; it takes the name only", f"export {word}, then --env {word}"
            )
    return names


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one per line.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only names, and no messages.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return once it has started; do not follow it.")]
SendDryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")]
PublicOption = Annotated[bool, typer.Option("--public", help="Make a new Hub repository public.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, e.g. train.seed=7. Repeatable."),
]
BucketOption = Annotated[
    str | None, typer.Option("--bucket", metavar="URL", help="Use this bucket instead of the one in the settings.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="Convert the weights to bfloat16, float16 or float32.")
]
StepOption = Annotated[
    int | None, typer.Option("--step", metavar="N", help="Take the checkpoint of step N instead of the newest.")
]
BestOption = Annotated[bool, typer.Option("--best", help="Take the checkpoint with the lowest validation loss.")]
StyleOption = Annotated[
    str, typer.Option("--style", metavar="NAME", help="Prompt style: chat (the model's own template), alpaca, plain.")
]

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Name of a job (jobs/NAME.yaml), or path of a job file.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run; 'bafogpt runs ls' lists them.")]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model folder with config.json, safetensors and the tokenizer.")
]
RunOrFolderArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run (its newest checkpoint), or a model folder on this machine.")
]


@dataclass(frozen=True, kw_only=True)
class MachineFlags:
    """Where a job runs."""

    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus", metavar="TYPE[:COUNT]", help="GPUs of each machine, e.g. L40:4. Default: as in the task (sky/)."
        ),
    ] = None
    infra: Annotated[
        str | None,
        typer.Option(
            "--infra",
            metavar="WHERE",
            help="Where to run: local (this machine), or a SkyPilot infra (runpod, slurm, …).",
        ),
    ] = None
    bucket: BucketOption = None


@dataclass(frozen=True, kw_only=True)
class JobFlags(MachineFlags):
    """Where a job runs, and what is changed in it."""

    assignments: SetOption = None


@dataclass(frozen=True, kw_only=True)
class LaunchFlags(JobFlags):
    """How a job is launched."""

    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Name of the run. Default: from the job's name.")
    ] = None
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="REF", help="Container image instead of the pinned one; 'none' runs without a container."
        ),
    ] = None
    env_names: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            callback=_names_only,
            help="Pass environment variable NAME, with its value on this machine, to the job. Repeatable.",
        ),
    ] = None
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, help="Train on N machines of the same kind.")
    ] = None
    spot: Annotated[
        bool, typer.Option("--spot", help="Rent cheaper machines that the cloud may take back; implies --managed.")
    ] = False
    managed: Annotated[
        bool, typer.Option("--managed", help="Resume the run on another machine if its machine is lost.")
    ] = False
    retry_until_up: Annotated[
        bool, typer.Option("--retry-until-up", help="Keep requesting machines until one is available.")
    ] = False
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", metavar="DOLLARS", help="Stop, with a checkpoint, before spending DOLLARS."),
    ] = None
    max_hours: Annotated[
        float | None, typer.Option("--max-hours", metavar="HOURS", help="Stop, with a checkpoint, after HOURS.")
    ] = None
    clean: Annotated[bool, typer.Option("--clean", help="Refuse to launch if the code has uncommitted changes.")] = (
        False
    )
    profile: Annotated[
        int | None, typer.Option("--profile", metavar="N", min=1, help="Record a profiler trace of N training steps.")
    ] = None
    detach: DetachOption = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the task and its price; launch nothing.")] = False
    yes: YesOption = False

    def for_plan(self) -> LaunchOptions:
        """The options of :func:`bafogpt.launch.plan.make`."""
        from bafogpt.launch.plan import LaunchOptions

        values = {each.name: getattr(self, each.name) for each in fields(LaunchOptions)}
        profile = [f"train.profile={self.profile}"] if self.profile else []
        assignments = [*(self.assignments or ()), *profile]
        return LaunchOptions(**values | {"assignments": assignments, "env_names": self.env_names or ()})


@dataclass(frozen=True, kw_only=True)
class TransferFlags:
    """How files are sent."""

    max_bandwidth: Annotated[
        str | None,
        typer.Option("--max-bandwidth", metavar="RATE", help="Transfer at most RATE bytes per second: 500k, 5M, 1.5G."),
    ] = None

    @property
    def bandwidth(self) -> Bandwidth | None:
        """Raises :class:`UsageError` for a rate that cannot be parsed."""
        from bafogpt.storage.transfer.bandwidth import Bandwidth, parse

        return Bandwidth(parse(self.max_bandwidth)) if self.max_bandwidth else None


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """How a model folder is loaded."""

    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="T",
            help="A tokenizer.json, a folder with one, or 'bytes'. Default: the model's own.",
        ),
    ] = None
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Run on cpu or cuda; auto is cuda where available.")
    ] = "auto"
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Compute in float32, bfloat16 or float16. Default: as stored."),
    ] = None

    def load(self, folder: Path, style: str) -> ChatModel:
        """Raises what :meth:`ChatModel.load` raises."""
        from bafogpt.model.chat_model import ChatModel

        return ChatModel.load(folder, tokenizer=self.tokenizer, style=style, device=self.device, dtype=self.dtype)


TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0 is greedy; higher is more random.")
]
TopPOption = Annotated[float, typer.Option("--top-p", metavar="P", help="Nucleus sampling threshold; 1 is off.")]


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen."""

    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Generate at most N tokens. Default: 256.")
    ] = None
    temperature: TemperatureOption = 1.0
    top_p: TopPOption = 1.0
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Sample from the N most likely tokens only.")
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Random seed. Default: a new one each time.")
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text. Repeatable.")
    ] = None

    @property
    def sampling(self) -> Sampling:
        """Raises :class:`UsageError` for a value out of range."""
        from bafogpt.model.generate import Sampling

        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed)
