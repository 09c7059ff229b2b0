"""Checks a machine before data or weights are fetched onto it: a bad machine costs a minute, not an hour.

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
from bafogpt.agent.outcome import resume_hint
from bafogpt.core import nvidia_smi
from bafogpt.core.errors import ConfigError, StorageError, UnfitMachineError
from bafogpt.core.nvidia_smi import Gpu, NvidiaSmiError
from bafogpt.storage.bucket import Bucket
from bafogpt.train.estimates import gpus as cards

MIN_DRIVER = {12: "525.60.13", 13: "580.65.06"}
"""Oldest Linux driver for each major version of CUDA that torch is built with. NVIDIA, CUDA Compatibility, "Minor
Version Compatibility" (525 and 580), and the CUDA 12.0 and 13.0 release notes for the full numbers."""
TAKEN_BYTES = 1_500_000_000
"""Memory in use beyond this, before the run starts, is another program's; a driver alone holds some hundred MB."""
RELEASE_S = 15.0
"""How long the memory of killed processes may take to become free."""
SMALLER = 0.85
"""A GPU with less than this share of its type's memory is another type, or a part of one."""
SECOND_TRY = 0.5
"""Share of the timeout that the second try, without P2P, gets: a bad machine costs less than two minutes."""
SKEW_WARN_S = 30.0
SKEW_FAIL_S = 300.0
"""S3 refuses signatures that are 15 minutes off; times in records are wrong long before."""

_CUDA = re.compile(r"^cuda\b[^=]*=\s*'([^']+)'", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class MachineRequirements:
    """What a job needs of this machine."""

    name: str
    """The run's."""
    processes: int
    """Trainer processes on this machine; 0 is one per GPU."""
    gpu: str = ""
    """SkyPilot's name of the requested GPU."""
    gpus: int = 0
    """How many of them on this machine."""
    rented: bool = False
    folder: Path = Path()
    """The run's local disk."""
    disk_bytes: int | None = None
    """The most that the job will have on it; None where unknown."""
    collective_timeout_s: float = 60.0
    """0 leaves the all-reduce out."""

    @property
    def retry(self) -> str:
        """The command that tries another machine."""
        return resume_hint(self.name)


@dataclass(frozen=True)
class MachineProblem:
    """A defect of the machine; only reported where it is not ``fatal``."""

    message: str
    hint: str
    fatal: bool = True


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """What the checks found."""

    problems: tuple[MachineProblem, ...] = ()
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
        return [each for each in self.problems if each.fatal]

    def require_fit(self) -> None:
        """Raise :class:`UnfitMachineError` with all fatal problems, and the hint of the first."""
        if self.fatal:
            raise UnfitMachineError("; ".join(each.message for each in self.fatal), self.fatal[0].hint)


def check(
    needs: MachineRequirements,
    bucket: Bucket,
    *,
    log: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
    command: Sequence[str] = collective.COMMAND,
) -> PreflightReport:
    """Run all checks; this takes some ten seconds, two minutes where an all-reduce hangs.

    ``bucket`` is a folder for a small test object; ``command`` is a process of the all-reduce. The all-reduce is left
    out where the machine is unfit already, and is tried again without P2P where it fails. Raises :class:`ConfigError`,
    see :func:`too_few_gpus`.
    """
    gpus, found = _gpus(needs)
    if gpus:
        found += [driver_too_old(needs, gpus, torch_cuda()), gpu_too_small(needs, gpus)]
        found.append(_gpu_still_taken(needs, gpus, stopped))
    free = disk_free(needs.folder)
    skew = clock_skew_s(bucket) if needs.rented else None
    found += [disk_full(needs, free), clock_off(needs, skew)]
    report = PreflightReport(
        problems=tuple(each for each in found if each),
        figures={
            "driver": gpus[0].driver if gpus else "",
            "gpus": [gpu.name for gpu in gpus],
            "disk_free": free,
            "disk_needed": needs.disk_bytes,
            "clock_skew_s": None if skew is None else round(skew, 1),
        },
    )
    processes = needs.processes or len(gpus)
    if report.fatal or not gpus or not needs.collective_timeout_s or stopped():
        return report
    return _with_all_reduce(report, needs, processes, log, stopped, command)


def torch_cuda() -> str:
    """The CUDA version in torch's ``version.py``, which is not imported; empty for a build without CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return ""
    try:
        match = _CUDA.search((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""


def driver_too_old(needs: MachineRequirements, gpus: Sequence[Gpu], cuda: str) -> MachineProblem | None:
    """``cuda`` is the version that torch was built with. An unknown version of either passes."""
    minimum = MIN_DRIVER.get(_version(cuda)[0] if _version(cuda) else 0)
    driver = gpus[0].driver
    if minimum is None or not _version(driver) or _version(driver) >= _version(minimum):
        return None
    return MachineProblem(
        f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {minimum} or newer",
        f"{needs.retry} --infra OTHER, or --image with a torch for CUDA 12",
    )


def too_few_gpus(needs: MachineRequirements, count: int) -> MachineProblem | None:
    """Fewer GPUs than requested; with none, the trainers would use the CPU.

    Raises :class:`ConfigError` for more trainer processes than GPUs: another machine would not help.
    """
    if count < needs.gpus:
        wanted = f"{needs.gpu}:{needs.gpus}" if needs.gpu else f"{needs.gpus}"
        return MachineProblem(f"{wanted} GPUs were asked for, and {count} are visible", needs.retry)
    if 0 < count < needs.processes:
        raise ConfigError(
            f"supervisor.processes is {needs.processes}, and {count} GPUs are visible",
            f"--set supervisor.processes={count}",
        )
    return None


def gpu_too_small(needs: MachineRequirements, gpus: Sequence[Gpu]) -> MachineProblem | None:
    """A GPU with less memory than the data sheet of its type says."""
    card = cards.of_accelerator(needs.gpu)
    for gpu in gpus:
        if card is not None and gpu.memory_total is not None and gpu.memory_total < SMALLER * card.memory:
            return MachineProblem(
                f"GPU {gpu.index} ({gpu.name}) has {gpu.memory_total / 1e9:.1f} GB, and a {needs.gpu} has "
                f"{card.memory / 1e9:.1f}",
                needs.retry,
            )
    return None


def gpu_taken(needs: MachineRequirements, gpus: Sequence[Gpu]) -> MachineProblem | None:
    """A GPU that another program uses; only reported on a machine of your own, where that may be the desktop."""
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
                needs.retry,
                fatal=needs.rented,
            )
    return None


def disk_free(folder: Path) -> int:
    """Bytes that the run may use on the disk of ``folder``: free ones, and those in use by the folder itself."""
    own = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                own += (Path(path) / name).lstat().st_size
            except FileNotFoundError:
                continue  # uploads remove files meanwhile
    return shutil.disk_usage(folder).free + own


def disk_full(needs: MachineRequirements, free: int) -> MachineProblem | None:
    """A disk too small for pending checkpoints, first weights and the cache of the data."""
    if needs.disk_bytes is None or free >= needs.disk_bytes:
        return None
    needed = needs.disk_bytes / 1e9
    return MachineProblem(
        f"the job needs {needed:.1f} GB of disk at {needs.folder}, and {free / 1e9:.1f} GB are free",
        f"disk_size: {int(needed * 1.3) + 20} under resources: of the task, or --set train.checkpoint.max_pending=1",
        fatal=needs.rented,  # your own disk may be cleared meanwhile; each checkpoint is checked too
    )


def clock_skew_s(bucket: Bucket, now: Callable[[], float] = time.time) -> float | None:
    """Seconds by which this machine's clock is ahead of the bucket's; None where the bucket does not answer.

    Measured by the modification time of a small object, which the bucket rounds to a second. The result is the least
    skew that explains the times, so a slow request adds none.
    """
    name = f"clock/{os.environ.get('SKYPILOT_NODE_RANK') or 0}"
    try:
        before = now()
        bucket.put(name, b"0")
        after = now()
        written = bucket.info(name).modified.timestamp()
        bucket.delete(name)
    except StorageError:
        return None  # the supervisor waits for the bucket, and reports it
    if written > after:
        return after - written
    return max(0.0, before - written - 1.0)


def clock_off(needs: MachineRequirements, skew: float | None) -> MachineProblem | None:
    """A clock that is off by more than :data:`SKEW_WARN_S`; fatal beyond :data:`SKEW_FAIL_S`."""
    if skew is None or abs(skew) <= SKEW_WARN_S:
        return None
    where = "ahead of" if skew > 0 else "behind"
    return MachineProblem(
        f"this machine's clock is {abs(skew):.0f} s {where} the bucket's", needs.retry, abs(skew) > SKEW_FAIL_S
    )


def _gpus(needs: MachineRequirements) -> tuple[list[Gpu], list[MachineProblem | None]]:
    """The GPUs, and problems with their number. A broken driver is fatal where a GPU was requested."""
    try:
        gpus = nvidia_smi.query()
    except NvidiaSmiError as error:
        return [], [MachineProblem(f"the GPUs do not answer: {error}", needs.retry, fatal=needs.gpus > 0)]
    return gpus, [too_few_gpus(needs, len(gpus))]


def _gpu_still_taken(
    needs: MachineRequirements, gpus: Sequence[Gpu], stopped: Callable[[], bool]
) -> MachineProblem | None:
    """As :func:`gpu_taken`, after the memory of an earlier supervisor's trainers has had time to become free."""
    deadline = time.monotonic() + RELEASE_S
    while (found := gpu_taken(needs, gpus)) is not None and time.monotonic() < deadline and not stopped():
        time.sleep(1.0)
        try:
            gpus = nvidia_smi.query()
        except NvidiaSmiError:
            break
    return found


def _with_all_reduce(
    report: PreflightReport,
    needs: MachineRequirements,
    processes: int,
    log: Callable[[str], None],
    stopped: Callable[[], bool],
    command: Sequence[str],
) -> PreflightReport:
    """The report with the result of the all-reduce, tried again without P2P where it fails."""
    tries: list[tuple[dict[str, str], float]] = [({}, 1.0)]
    if processes > 1 and not os.environ.get("NCCL_P2P_DISABLE"):
        tries.append((collective.WITHOUT_P2P, SECOND_TRY))
    failure = ""
    for environment, share in tries:
        outcome = collective.run(
            processes,
            "cuda",
            needs.folder,
            timeout_s=share * needs.collective_timeout_s,
            log=log,
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
            problems = (*report.problems, slower) if environment else report.problems
            return PreflightReport(problems=problems, figures=figures, environment=environment)
        failure = failure or outcome.failure
    also = ", also with NCCL_P2P_DISABLE=1" if len(tries) > 1 else ""
    hint = f"{needs.retry}, or export NCCL_DEBUG=INFO and --env NCCL_DEBUG to see why"
    return replace(report, problems=(*report.problems, MachineProblem(f"{failure}{also}", hint)))


def _version(text: str) -> tuple[int, ...]:
    """``"580.65.06"`` as (580, 65, 6); () for what is not a version."""
    return tuple(map(int, re.findall(r"\d+", text))) if re.fullmatch(r"\d+(\.\d+)*", text) else ()
