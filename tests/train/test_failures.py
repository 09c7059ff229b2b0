"""How a trainer fails: retryable errors, and the deadline of a hanging first collective."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from bafogpt.agent.workers import Workers
from bafogpt.core.errors import ExitCode
from bafogpt.storage.bucket import Bucket
from bafogpt.train import worker
from bafogpt.train.estimates.memory import is_out_of_memory
from bafogpt.train.trainer_io import StopFlag, TrainerFiles, TrainOrder

from .conftest import tiny

HERE = Path(__file__).parent


class OutOfResources(Exception):  # noqa: N818 - the name is what is looked at
    """Of triton's name, which needs no triton."""


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "at_start", "later"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), False, True),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (OutOfResources("out of resource: shared memory, Required: 114688"), False, False),
        (RuntimeError("OutOfResources: out of resource: shared memory, Required: 114688"), False, False),
        (caused(RuntimeError("backend='inductor' raised:"), OutOfResources("shared memory")), False, False),
        (FailOnRecompileLimitHit("recompile_limit reached"), False, False),
        (TypeError("got an unexpected keyword"), False, True),
        (ValueError("shapes differ"), False, True),
        (AttributeError("no attribute"), False, True),
        (NotImplementedError("on this device"), False, True),
        (ImportError("libcudart.so.13: cannot open shared object file"), False, True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True, True),
        (RuntimeError("CUDA error: device-side assert triggered"), True, True),
        (OSError("Stale file handle"), True, True),
        (caused(RuntimeError("a"), RuntimeError("b")), True, True),
    ],
)
def test_a_restart_helps_after_hardware_errors_and_not_after_program_errors(
    error: Exception, at_start: bool, later: bool
):
    assert worker.is_retryable(error, trained=False) is at_start
    assert worker.is_retryable(error, trained=True) is later


def order(bucket: str = "file:///nowhere", **more: Any) -> TrainOrder:
    return TrainOrder(bucket=bucket, config=tiny(), **more)


@pytest.mark.parametrize(("trained", "node", "retry"), [(False, "0", False), (True, "0", True), (False, "1", True)])
def test_a_worker_records_whether_a_restart_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool, node: str, retry: bool
):
    from bafogpt.train import loop

    def train(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setenv("GROUP_RANK", node)
    trainer_files = TrainerFiles(tmp_path)
    trainer_files.write_order(order())
    if trained:
        trainer_files.metrics(1).write_text('{"step": 1}\n')
    worker.main(tmp_path, StopFlag())
    (result,) = trainer_files.read_results()
    assert (result.outcome, result.retry) == ("failed", retry)
    assert "train.batch.micro_batch_size" in result.hint


def test_a_hanging_first_collective_ends_trainers_at_its_deadline_as_an_unfit_machine(
    starter: Bucket, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {**s3.environment, "PYTHONPATH": str(HERE.parents[1])}.items():
        monkeypatch.setenv(name, value)
    trainer_files = TrainerFiles(tmp_path)
    trainer_files.write_order(order(starter.url, collective_timeout_s=1.0))
    output: list[str] = []
    trainers = Workers(tmp_path, 2, output.append, (sys.executable, str(HERE / "late_worker.py")))
    try:
        deadline = time.monotonic() + 120
        while trainers.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        codes = trainers.exit_codes()
    finally:
        trainers.end()
    assert ExitCode.MACHINE_UNFIT in codes and set(codes) <= {ExitCode.MACHINE_UNFIT, None}, output
    result = trainer_files.read_results()[0]
    assert (result.exit_code, result.retry) == (ExitCode.MACHINE_UNFIT, False)
    assert result.error == "the first all-reduce over 2 processes did not end within 1 s"
    assert "NCCL_SOCKET_IFNAME" in result.hint
    assert any("collective_check" in line and "File" in line for line in output)  # where it was stuck
    assert not any((tmp_path / "cache").iterdir()) and not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("out of resource: shared memory, Required: 114688, Hardware limit: 101376", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_out_of_memory_is_detected_in_the_errors_of_each_library(text: str, full: bool):
    assert is_out_of_memory(RuntimeError(text)) == full
