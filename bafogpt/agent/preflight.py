"""Checks of a machine before data or weights are fetched onto it: a bad machine costs a minute, not an hour.

Each check is a function that returns a :class:`MachineProblem`, or None where nothing is wrong or the check does not
apply. :func:`check` runs them all. On a machine without GPUs, for a job that asked for none, it starts no process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bafogpt.agent import collective
from bafogpt.core import nvidia_smi
from bafogpt.core.errors import ConfigError, StorageError, UnfitMachineError
from bafogpt.core.nvidia_smi import Gpu, NvidiaSmiError
from bafogpt.storage.bucket import Bucket
from bafogpt.train.estimates import gpus as cards

MIN_DRIVER = {12: "525.60.13", 13: "580.65.06"}
"""Oldest Linux driver for each major version of CUDA that torch is built with. NVIDIA, CUDA Compatibility, "Minor
Version Compatibility" (525 and 580), and the CUDA 12.0 and 13.0 release notes for the full numbers."""
TAKEN_BYTES = 1_500_000_000
"""More than this in use on a GPU before we start is another program's; a driver alone holds some hundred MB."""
RELEASE_S = 15.0
"""How long the memory of processes that have just been killed may take to become free."""
SMALLER = 0.85
"""A GPU that reports less than this share of its type's memory is another type, or a part of one."""
SECOND_TRY = 0.5
"""Share of the all-reduce's time that the try without P2P gets, so that a bad machine costs less than two minutes."""
SKEW_WARN_S = 30.0
SKEW_FAIL_S = 300.0
"""S3 refuses signatures that are 15 minutes off; times in records and reports are wrong long before."""

_CUDA = re.compile(r"^cuda\b[^=]*=\s*'([^']+)'", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class MachineRequirements:
    """What a job needs of this machine."""

    name: str
    """The run's."""
    processes: int
    """Trainer processes on this machine; 0 is one a GPU."""
    gpu: str = ""
    """SkyPilot's name of the GPU that was asked for."""
    gpus: int = 0
    """How many of them on this machine."""
    rented: bool = False
    folder: Path = Path()
    """The run's local disk."""
    disk_bytes: int | None = None
    """What the job will have on it at once; None where that is not known."""
    collective_timeout_s: float = 60.0
    """0 leaves the all-reduce out."""


@dataclass(frozen=True)
class MachineProblem:
    """Something that is wrong with the machine. One that is not ``fatal`` is only reported."""

    message: str
    hint: str
    fatal: bool = True


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """What the checks found."""

    findings: tuple[MachineProblem, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """``driver``, ``gpus`` (names), ``disk_free`` and ``disk_needed`` (bytes), ``clock_skew_s`` (positive: this clock
    is ahead of the bucket's), ``all_reduce_gb_per_s`` (bus bandwidth)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the trainers need on this machine."""

    @property
    def gpus(self) -> int:
        """GPUs that the trainers have."""
        return len(self.figures.get("gpus", ()))

    @property
    def fatal(self) -> list[MachineProblem]:
        return [each for each in self.findings if each.fatal]

    def require_fit(self) -> None:
        """Raise :class:`UnfitMachineError` with all that is fatally wrong, and the hint of the first."""
        if self.fatal:
            raise UnfitMachineError("; ".join(each.message for each in self.fatal), self.fatal[0].hint)


def check(
    request: MachineRequirements,
    bucket: Bucket,
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
    command: Sequence[str] = collective.COMMAND,
) -> PreflightReport:
    """All checks of this machine; some ten seconds, two minutes where an all-reduce hangs.

    ``bucket`` is a folder that a small object may be written to; ``command`` is a process of the all-reduce. The
    all-reduce is left out where something is wrong already, and is tried a second time without P2P where it fails.
    Raises :class:`ConfigError`, see :func:`too_few`.
    """
    gpus, found = _gpus(request)
    if gpus:
        found += [driver_too_old(request, gpus, torch_cuda()), too_small(request, gpus)]
        found.append(_taken_for_long(request, gpus, stopped))
    free = disk_free(request.folder)
    skew = clock_skew_s(bucket) if request.rented else None
    found += [disk_full(request, free), clock_off(request, skew)]
    report = PreflightReport(
        findings=tuple(each for each in found if each),
        figures={
            "driver": gpus[0].driver if gpus else "",
            "gpus": [gpu.name for gpu in gpus],
            "disk_free": free,
            "disk_needed": request.disk_bytes,
            "clock_skew_s": None if skew is None else round(skew, 1),
        },
    )
    processes = request.processes or len(gpus)
    if report.fatal or not gpus or not request.collective_timeout_s or stopped():
        return report
    return _with_all_reduce(report, request, processes, say, stopped, command)


def torch_cuda() -> str:
    """The CUDA version in torch's own ``version.py``; empty for a build without. torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return ""
    try:
        match = _CUDA.search((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""


def driver_too_old(request: MachineRequirements, gpus: Sequence[Gpu], cuda: str) -> MachineProblem | None:
    """``cuda`` is the version that torch was built with; an unknown one, or an unreadable driver's, is let pass."""
    minimum = MIN_DRIVER.get(_version(cuda)[0] if _version(cuda) else 0)
    driver = gpus[0].driver
    if minimum is None or not _version(driver) or _version(driver) >= _version(minimum):
        return None
    return MachineProblem(
        f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {minimum} or newer",
        f"{_again(request)} --infra OTHER, or --image with a torch for CUDA 12",
    )


def too_few(request: MachineRequirements, count: int) -> MachineProblem | None:
    """Fewer GPUs than were asked for; with none at all the trainers would go to the CPU.

    Raises :class:`ConfigError` for more trainer processes than GPUs, which no other machine of the kind would help.
    """
    if count < request.gpus:
        wanted = f"{request.gpu}:{request.gpus}" if request.gpu else f"{request.gpus}"
        return MachineProblem(f"{wanted} GPUs were asked for, and {count} are visible", _again(request))
    if 0 < count < request.processes:
        raise ConfigError(
            f"supervisor.processes is {request.processes}, and {count} GPUs are visible",
            f"--set supervisor.processes={count}",
        )
    return None


def too_small(request: MachineRequirements, gpus: Sequence[Gpu]) -> MachineProblem | None:
    """A GPU with less memory than its type has by the maker's data sheet."""
    card = cards.of_accelerator(request.gpu)
    for gpu in gpus:
        if card is not None and gpu.memory_total is not None and gpu.memory_total < SMALLER * card.memory:
            return MachineProblem(
                f"GPU {gpu.index} ({gpu.name}) has {gpu.memory_total / 1e9:.1f} GB, and a {request.gpu} has "
                f"{card.memory / 1e9:.1f}",
                _again(request),
            )
    return None


def taken(request: MachineRequirements, gpus: Sequence[Gpu]) -> MachineProblem | None:
    """A GPU that another program uses. On your own machine that may be the desktop, so there it is only reported."""
    try:
        programs = {each.gpu_uuid: each for each in nvidia_smi.compute_processes()}
    except NvidiaSmiError:
        programs = {}  # drivers that cannot list them still report memory
    for gpu in gpus:
        program, used = programs.get(gpu.uuid), gpu.memory_used or 0
        if used > TAKEN_BYTES or program:
            by = f"{program.name}, process {program.pid}" if program else "another program"
            return MachineProblem(
                f"GPU {gpu.index} is in use by {by}: {used / 1e9:.1f} GB of its memory",
                _again(request),
                fatal=request.rented,
            )
    return None


def disk_free(folder: Path) -> int:
    """Bytes that the run may have on the disk of ``folder``: free ones, and those that it has there already."""
    own = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                own += (Path(path) / name).lstat().st_size
            except FileNotFoundError:
                continue  # uploads remove files meanwhile
    return shutil.disk_usage(folder).free + own


def disk_full(request: MachineRequirements, free: int) -> MachineProblem | None:
    """A disk too small for checkpoints on their way out, first weights and the cache of the data."""
    if request.disk_bytes is None or free >= request.disk_bytes:
        return None
    needed = request.disk_bytes / 1e9
    return MachineProblem(
        f"the job needs {needed:.1f} GB of disk at {request.folder}, and {free / 1e9:.1f} GB are free",
        f"disk_size: {int(needed * 1.3) + 20} under resources: of the task, or --set train.checkpoint.max_pending=1",
        fatal=request.rented,  # your own disk may get room meanwhile, and each checkpoint looks for it
    )


def clock_skew_s(bucket: Bucket, now: Callable[[], float] = time.time) -> float | None:
    """Seconds by which this machine's clock is ahead of the bucket's; None where the bucket does not say.

    From the time that the bucket gives a small object, which it rounds to a second. What the request took is not
    counted: the result is the least skew that explains the times.
    """
    name = f"clock/{os.environ.get('SKYPILOT_NODE_RANK') or 0}"
    try:
        before = now()
        bucket.put(name, b"0")
        after = now()
        written = bucket.info(name).modified.timestamp()
        bucket.delete(name)
    except StorageError:
        return None  # what follows says so, and waits for it
    if written > after:
        return after - written
    return max(0.0, before - written - 1.0)


def clock_off(request: MachineRequirements, skew: float | None) -> MachineProblem | None:
    """A clock that differs from the bucket's by more than :data:`SKEW_WARN_S`; fatally from :data:`SKEW_FAIL_S` on."""
    if skew is None or abs(skew) <= SKEW_WARN_S:
        return None
    where = "ahead of" if skew > 0 else "behind"
    return MachineProblem(
        f"this machine's clock is {abs(skew):.0f} s {where} the bucket's", _again(request), abs(skew) > SKEW_FAIL_S
    )


def _gpus(request: MachineRequirements) -> tuple[list[Gpu], list[MachineProblem | None]]:
    """The GPUs, and what is wrong with their number. A broken driver matters where a GPU was asked for."""
    try:
        gpus = nvidia_smi.query()
    except NvidiaSmiError as error:
        return [], [MachineProblem(f"the GPUs do not answer: {error}", _again(request), fatal=request.gpus > 0)]
    return gpus, [too_few(request, len(gpus))]


def _taken_for_long(
    request: MachineRequirements, gpus: Sequence[Gpu], stopped: Callable[[], bool]
) -> MachineProblem | None:
    """As :func:`taken`, but not for what an earlier supervisor's trainers are just giving back."""
    deadline = time.monotonic() + RELEASE_S
    while (found := taken(request, gpus)) is not None and time.monotonic() < deadline and not stopped():
        time.sleep(1.0)
        try:
            gpus = nvidia_smi.query()
        except NvidiaSmiError:
            break
    return found


def _with_all_reduce(
    report: PreflightReport,
    request: MachineRequirements,
    processes: int,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
    command: Sequence[str],
) -> PreflightReport:
    """The report with the all-reduce in it, tried once more without P2P where it fails."""
    tries: list[tuple[dict[str, str], float]] = [({}, 1.0)]
    if processes > 1 and not os.environ.get("NCCL_P2P_DISABLE"):
        tries.append((collective.WITHOUT_P2P, SECOND_TRY))
    failure = ""
    for environment, share in tries:
        outcome = collective.run(
            processes,
            "cuda",
            request.folder,
            timeout_s=share * request.collective_timeout_s,
            say=say,
            stopped=stopped,
            environment={"NCCL_DEBUG": "WARN", **environment},
            command=command,
        )
        if outcome.stopped:
            return report
        if not outcome.failure:
            figures = {**report.figures, "all_reduce_gb_per_s": outcome.gb_per_s}
            slower = MachineProblem(
                f"{failure}; with NCCL_P2P_DISABLE=1 it works, and training goes on with it", "", False
            )
            findings = (*report.findings, slower) if environment else report.findings
            return PreflightReport(findings=findings, figures=figures, environment=environment)
        failure = failure or outcome.failure
    also = ", also with NCCL_P2P_DISABLE=1" if len(tries) > 1 else ""
    hint = f"{_again(request)}, or export NCCL_DEBUG=INFO and --env NCCL_DEBUG to see why"
    return replace(report, findings=(*report.findings, MachineProblem(f"{failure}{also}", hint)))


def _again(request: MachineRequirements) -> str:
    """What rents another machine."""
    return f"bafogpt cloud launch … --name {request.name} --resume"


def _version(text: str) -> tuple[int, ...]:
    """``"580.65.06"`` as (580, 65, 6); () for what is not a version."""
    return tuple(map(int, re.findall(r"\d+", text))) if re.fullmatch(r"\d+(\.\d+)*", text) else ()
