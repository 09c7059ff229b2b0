"""Checks a machine before data or weights are fetched onto it: a bad machine costs a minute, not an hour.

:func:`check` runs all checks. On a machine without GPUs, for a job that needs none, it starts no process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    out where the machine is unfit already. Raises :class:`ConfigError` for more trainer processes than GPUs: another
    machine would not help.
    """
    checks = _Checks(needs, stopped)
    gpus = checks.gpus()
    if gpus:
        checks.driver(gpus[0].driver, torch_cuda())
        checks.memory(gpus)
        checks.taken(gpus)
    free, skew = disk_free(needs.folder), clock_skew_s(bucket) if needs.rented else None
    checks.disk(free)
    checks.clock(skew)
    figures = {
        "driver": gpus[0].driver if gpus else "",
        "gpus": [gpu.name for gpu in gpus],
        "disk_free": free,
        "disk_needed": needs.disk_bytes,
        "clock_skew_s": None if skew is None else round(skew, 1),
    }
    environment: Mapping[str, str] = {}
    if gpus and needs.collective_timeout_s and not stopped() and not any(each.fatal for each in checks.problems):
        gb_per_s, environment = checks.all_reduce(needs.processes or len(gpus), log, command)
        if gb_per_s is not None:
            figures["all_reduce_gb_per_s"] = gb_per_s
    return PreflightReport(problems=tuple(checks.problems), figures=figures, environment=environment)


class _Checks:
    """Collects the problems of this machine, one method per check."""

    def __init__(self, needs: MachineRequirements, stopped: Callable[[], bool]) -> None:
        self._needs = needs
        self._stopped = stopped
        self.problems: list[MachineProblem] = []

    def _add(self, message: str, hint: str = "", *, fatal: bool = True) -> None:
        self.problems.append(MachineProblem(message, hint or resume_hint(self._needs.name), fatal))

    def gpus(self) -> list[Gpu]:
        """The GPUs, which must answer and be enough: with none, the trainers would use the CPU."""
        needs = self._needs
        try:
            gpus = nvidia_smi.query()
        except NvidiaSmiError as error:
            self._add(f"the GPUs do not answer: {error}", fatal=needs.gpus > 0)
            return []
        if len(gpus) < needs.gpus:
            wanted = f"{needs.gpu}:{needs.gpus}" if needs.gpu else f"{needs.gpus}"
            self._add(f"{wanted} GPUs requested, {len(gpus)} visible")
        elif 0 < len(gpus) < needs.processes:
            message = f"supervisor.processes is {needs.processes}, and {len(gpus)} GPUs are visible"
            raise ConfigError(message, f"--set supervisor.processes={len(gpus)}")
        return gpus

    def driver(self, driver: str, cuda: str) -> None:
        """The driver must be new enough for torch's CUDA. An unknown version of either passes."""
        minimum = MIN_DRIVER.get(_version(cuda)[0] if _version(cuda) else 0)
        if minimum is not None and _version(driver) and _version(driver) < _version(minimum):
            self._add(
                f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {minimum} or newer",
                f"{resume_hint(self._needs.name)} --infra OTHER, or --image with a torch for CUDA 12",
            )

    def memory(self, gpus: Sequence[Gpu]) -> None:
        """Each GPU must have the memory that the data sheet of its type says."""
        card = cards.of_accelerator(self._needs.gpu)
        small = [gpu for gpu in gpus if card and gpu.memory_total and gpu.memory_total < SMALLER * card.memory]
        if card and small:
            gpu, size = small[0], (small[0].memory_total or 0) / 1e9
            expected = f"a {self._needs.gpu} has {card.memory / 1e9:.1f}"
            self._add(f"GPU {gpu.index} ({gpu.name}) has {size:.1f} GB, and {expected}")

    def taken(self, gpus: Sequence[Gpu]) -> None:
        """No other program may use a GPU, after an earlier supervisor's trainers have had time to free its memory.

        Only reported on a machine of your own, where the program may be the desktop.
        """
        deadline = time.monotonic() + RELEASE_S
        while (user := _gpu_user(gpus)) and time.monotonic() < deadline and not self._stopped():
            time.sleep(1.0)
            try:
                gpus = nvidia_smi.query()
            except NvidiaSmiError:
                break
        if user:
            self._add(user, fatal=self._needs.rented)

    def disk(self, free: int) -> None:
        """The disk must have room for pending checkpoints, first weights and the cache of the data.

        Only reported on a machine of your own, which may get room later; each checkpoint is checked too.
        """
        needed = self._needs.disk_bytes
        if needed is not None and free < needed:
            size, folder = needed / 1e9, self._needs.folder
            hint = f"disk_size: {int(size * 1.3) + 20} under resources: of the task, or "
            self._add(
                f"the job needs {size:.1f} GB of disk at {folder}, and {free / 1e9:.1f} GB are free",
                f"{hint}--set train.checkpoint.max_pending=1",
                fatal=self._needs.rented,
            )

    def clock(self, skew: float | None) -> None:
        """The clock must agree with the bucket's, within :data:`SKEW_WARN_S`; fatal beyond :data:`SKEW_FAIL_S`."""
        if skew is not None and abs(skew) > SKEW_WARN_S:
            where = "ahead of" if skew > 0 else "behind"
            message = f"this machine's clock is {abs(skew):.0f} s {where} the bucket's"
            self._add(message, fatal=abs(skew) > SKEW_FAIL_S)

    def all_reduce(
        self, processes: int, log: Callable[[str], None], command: Sequence[str]
    ) -> tuple[float | None, Mapping[str, str]]:
        """The GPUs must reach each other, if need be without P2P; (bandwidth in GB/s, variables for the trainers)."""
        tries: list[tuple[dict[str, str], float]] = [({}, 1.0)]
        if processes > 1 and not os.environ.get("NCCL_P2P_DISABLE"):
            tries.append((collective.WITHOUT_P2P, SECOND_TRY))
        failure = ""
        for environment, share in tries:
            result = collective.run(
                processes,
                "cuda",
                self._needs.folder,
                timeout_s=share * self._needs.collective_timeout_s,
                log=log,
                stopped=self._stopped,
                environment={"NCCL_DEBUG": "WARN", **environment},
                command=command,
            )
            if result.stopped:
                return None, {}
            if not result.failure:
                if environment:
                    self._add(
                        f"{failure}; with NCCL_P2P_DISABLE=1 it works, and training continues with it", fatal=False
                    )
                return result.gb_per_s, environment
            failure = failure or result.failure
        also = ", also with NCCL_P2P_DISABLE=1" if len(tries) > 1 else ""
        hint = f"{resume_hint(self._needs.name)}, or export NCCL_DEBUG=INFO and --env NCCL_DEBUG to see why"
        self._add(f"{failure}{also}", hint)
        return None, {}


def _gpu_user(gpus: Sequence[Gpu]) -> str:
    """A GPU that another program uses, and the program; empty where there is none."""
    try:
        programs = {each.gpu_uuid: each for each in nvidia_smi.compute_processes()}
    except NvidiaSmiError:
        programs = {}  # drivers that cannot list them still report memory
    for gpu in gpus:
        program, used = programs.get(gpu.uuid), gpu.memory_used or 0
        if used > TAKEN_BYTES or program:
            by = f"{program.name}, process {program.pid}" if program else "another program"
            return f"GPU {gpu.index} is in use by {by}: {used / 1e9:.1f} GB of its memory"
    return ""


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


def _version(text: str) -> tuple[int, ...]:
    """``"580.65.06"`` as (580, 65, 6); () for what is not a version."""
    return tuple(map(int, re.findall(r"\d+", text))) if re.fullmatch(r"\d+(\.\d+)*", text) else ()
