"""Runs the checks of :mod:`bafogpt.agent.preflight` for a job, and records a machine that fails them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bafogpt.agent import preflight
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.agent.recorder import Recorder
from bafogpt.core.errors import BafoError, ExitCode
from bafogpt.jobs import env, model_shape
from bafogpt.jobs.job import Job
from bafogpt.runs.store import MAX_UNFIT, RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest
from bafogpt.train.config import TrainConfig
from bafogpt.train.estimates.flops import adapter_weights, matrix_weights


def require_fit(
    job: Job, recorder: Recorder, bucket: Bucket, folder: Path, *, stopped: Callable[[], bool]
) -> preflight.PreflightReport:
    """Check this machine for ``job`` and write the findings into the run's log and events.

    ``bucket`` is the one with runs and data, ``folder`` the run's local disk. Raises
    :class:`~bafogpt.core.errors.UnfitMachineError`, and :class:`~bafogpt.core.errors.ConfigError` for more trainers
    than GPUs.
    """
    vocab_size = None
    with contextlib.suppress(BafoError):  # the trainers report what is wrong with the dataset
        vocab_size = manifest.load(bucket.child(job.train.data.path)).vocab_size
    wanted = requirements(model_shape.with_network_sizes(job, bucket), recorder.record, folder, vocab_size)
    run = RunStore(bucket).folder(recorder.record.name)
    report = preflight.check(wanted, run, log=recorder.log, stopped=stopped)
    problems = [each.message for each in report.problems]
    recorder.event("machine_checked", fit=not report.fatal, problems=problems, **report.figures)
    for each in report.problems:
        if not each.fatal:
            recorder.log(f"this machine: {each.message}")
    if (speed := report.figures.get("all_reduce_gb_per_s")) is not None:
        recorder.log(f"all-reduce among the GPUs of this machine: {speed:.1f} GB/s")
    report.require_fit()
    return report


def requirements(
    job: Job,
    record: RunRecord,
    folder: Path,
    vocab_size: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> preflight.MachineRequirements:
    """What ``job`` needs of this machine, by the job itself and the variables of SkyPilot and the launch."""
    gpu, _, launched = environment.get(env.GPUS, "").partition(":")
    asked = max(
        _gpu_count(launched or ("1" if gpu else "")), _gpu_count(environment.get("SKYPILOT_NUM_GPUS_PER_NODE", ""))
    )
    cloud = record.machines[-1].get("cloud") if record.machines else ""
    config = job.supervisor
    return preflight.MachineRequirements(
        name=record.name,
        processes=config.processes,
        gpu=gpu if config.require_gpus else "",
        gpus=asked if config.require_gpus else 0,
        rented=record.infra != "local" or cloud not in ("", "local", None),
        folder=folder,
        disk_bytes=disk_bytes(job.train, vocab_size, resumed=record.step > 0),
        collective_timeout_s=config.collective_timeout_s,
    )


def disk_bytes(config: TrainConfig, vocab_size: int | None = None, *, resumed: bool) -> int | None:
    """The most bytes that a run has on one machine's disk; None for a model of unknown size.

    These are ``max_pending`` checkpoints that are being written or uploaded, and the one to resume from; the cache of
    the data, up to 4 bytes per token; and the first weights in bf16, which a resumed run needs only below an adapter. A
    checkpoint is weights and two moments.
    """
    shape = model_shape.shape_of(config, vocab_size)
    if shape is None:
        return None
    weights = matrix_weights(shape)
    trained = weights if config.adapter is None else adapter_weights(shape, config.adapter)
    checkpoint = 3 * trained * (2 if config.precision == "bf16-true" else 4)
    first = 2 * weights if config.model.checkpoint and (config.adapter or not resumed) else 0
    cache = min(int(config.data.cache_gb * 1e9), 4 * config.tokens)
    return checkpoint * (config.checkpoint.max_pending + 1) + cache + first


def record_unfit(recorder: Recorder, outcome: ExitOutcome) -> ExitOutcome:
    """Write into the run's record that this attempt's machine was unfit; the last of several in a row fails the run.

    Otherwise an engine that rents another machine after exit code 105 would do so without end.
    """
    if outcome.exit_code != ExitCode.MACHINE_UNFIT:
        return outcome
    *earlier, last = recorder.record.machines
    recorder.update(machines=[*earlier, {**last, "unfit": outcome.message, "hint": outcome.hint}])
    reasons = recorder.record.unfit
    if len(reasons) < MAX_UNFIT:
        return outcome
    message = f"{len(reasons)} machines in a row could not run the job: {'; '.join(dict.fromkeys(reasons))}"
    return ExitOutcome("failed", message, outcome.hint, ExitCode.JOB_FAILED)


def _gpu_count(text: str) -> int:
    """A number of GPUs, rounded up; 0 for any other text."""
    try:
        return max(0, -int(-float(text) // 1))
    except (ValueError, OverflowError):
        return 0
