"""Reads the GPUs of this machine and their state from ``nvidia-smi``.

torch is not used: importing it takes seconds. ``nvidia-smi`` may hang, fail with a broken driver, or print anything, so
each call has a deadline and reads a bounded number of bytes.
"""

from __future__ import annotations

import contextlib
import csv
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

TIMEOUT_S = 20.0
"""Eight GPUs without a persistence daemon take several seconds to initialise."""
MAX_BYTES = 1 << 20
LARGEST = 1e9
"""Larger numbers count as not reported; every real value, such as MiB of memory, is smaller."""

_GPU_FIELDS = "index,uuid,name,driver_version,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
_PROCESS_FIELDS = "gpu_uuid,pid,process_name,used_memory"
_MIB = 1 << 20


class NvidiaSmiError(Exception):
    """``nvidia-smi`` failed, hung or printed something other than a list of GPUs."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; None for values that it does not report."""

    index: int
    uuid: str
    name: str
    driver: str
    utilization: float | None
    """Share of time with a kernel running, 0 to 1."""
    memory_used: int | None
    """Bytes; so is ``memory_total``."""
    memory_total: int | None
    temperature: float | None
    """°C."""
    power: float | None
    """W."""


@dataclass(frozen=True, kw_only=True)
class ComputeProcess:
    """A process with a CUDA context on a GPU. Inside a container, processes outside may be missing."""

    gpu_uuid: str
    pid: int
    name: str


def query() -> list[Gpu]:
    """The GPUs that this process may use (``CUDA_VISIBLE_DEVICES`` is applied); [] where there is no ``nvidia-smi``.

    Raises :class:`NvidiaSmiError`.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    text = _run([f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"])
    return _visible(parse(text), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse(text: str) -> list[Gpu]:
    """The GPUs in the CSV output of ``nvidia-smi``. Raises :class:`NvidiaSmiError`."""
    found = []
    for row in _rows(text, _GPU_FIELDS):
        busy, used, total, temperature, power = map(_number, row[4:])
        if not row[0].isdecimal() or len(row[0]) > 4:
            raise NvidiaSmiError(f"nvidia-smi printed '{_first_line(','.join(row))}', which is not a GPU")
        found.append(
            Gpu(
                index=int(row[0]),
                uuid=row[1],
                name=row[2],
                driver=row[3],
                utilization=None if busy is None else busy / 100,
                memory_used=None if used is None else int(used * _MIB),
                memory_total=None if total is None else int(total * _MIB),
                temperature=temperature,
                power=power,
            )
        )
    return found


def count() -> int:
    """GPUs that this process may use; 0 where there is no driver, or ``nvidia-smi`` does not answer."""
    return len(gpus())


def gpus() -> list[dict[str, Any]]:
    """The fields of each :class:`Gpu` but ``index`` and ``uuid``, for records; [] where :func:`query` would raise."""
    try:
        found = query()
    except NvidiaSmiError:
        return []
    return [{key: value for key, value in asdict(gpu).items() if key not in ("index", "uuid")} for gpu in found]


def compute_processes() -> list[ComputeProcess]:
    """Processes on any GPU of this machine. Raises :class:`NvidiaSmiError`."""
    text = _run([f"--query-compute-apps={_PROCESS_FIELDS}", "--format=csv,noheader,nounits"])
    return [
        ComputeProcess(gpu_uuid=row[0], pid=int(row[1]), name=row[2])
        for row in _rows(text, _PROCESS_FIELDS)
        if row[1].isdecimal() and len(row[1]) < 20
    ]


def _run(options: Sequence[str]) -> str:
    """Standard output and error of ``nvidia-smi``. A call that hangs is killed but not waited for: a process that is
    stuck in the driver ignores SIGKILL."""
    try:
        process = subprocess.Popen(
            ["nvidia-smi", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise NvidiaSmiError(f"nvidia-smi cannot be run: {error.strerror}") from error
    deadline = time.monotonic() + TIMEOUT_S
    try:
        text = _read(process, deadline).decode("utf-8", errors="replace")
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise NvidiaSmiError(f"nvidia-smi did not answer within {TIMEOUT_S:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        assert process.stdout is not None
        process.stdout.close()
    if code:
        raise NvidiaSmiError(f"nvidia-smi failed with exit code {code}: {_first_line(text)}")
    return text


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Output until its end. Raises TimeoutExpired, and :class:`NvidiaSmiError` for more than :data:`MAX_BYTES`."""
    assert process.stdout is not None
    found = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                return bytes(found)
            found += piece
            if len(found) > MAX_BYTES:
                raise NvidiaSmiError(f"nvidia-smi printed more than {MAX_BYTES} bytes")
    raise subprocess.TimeoutExpired(process.args, TIMEOUT_S)


def _rows(text: str, fields: str) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    except csv.Error:
        raise NvidiaSmiError(f"nvidia-smi printed '{_first_line(text)}', which is not what was asked for") from None
    complete = [row for row in rows if len(row) == len(fields.split(","))]
    if rows and not complete:  # else other lines are warnings about a card
        message = f"nvidia-smi printed '{_first_line(','.join(rows[0]))}', which is not what was asked for"
        raise NvidiaSmiError(message)
    return complete


def _visible(found: list[Gpu], devices: str | None) -> list[Gpu]:
    """The GPUs in ``CUDA_VISIBLE_DEVICES``, by index or prefix of the UUID; all if it is unset or lists MIG devices."""
    if devices is None or "MIG" in devices:
        return found
    names = [name.strip() for name in devices.split(",") if name.strip()]
    return [
        gpu
        for gpu in found
        if any(name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)) for name in names)
    ]


def _first_line(text: str, limit: int = 120) -> str:
    """The first line, printable and shortened, for a message."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return "".join(each if each.isprintable() else "?" for each in line.strip())[:limit]


def _number(text: str) -> float | None:
    """A number printed by ``nvidia-smi``; None for ``[N/A]``."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < LARGEST else None
