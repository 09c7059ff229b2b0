"""What the card and its driver are, and what plain products and copies reach."""

from __future__ import annotations

import functools
import importlib.util
import subprocess

import torch

from bafogpt.model import flex
from bafogpt.train.estimates import gpus
from benchmarks.gpu_check.models import WIDTH, timed_ms, vocabulary
from benchmarks.gpu_check.report import Report

SMI = "name,driver_version,memory.total,power.limit,pcie.link.gen.current,pcie.link.width.current"


def machine(report: Report) -> None:
    """Names and versions; TFLOP/s of products; GB/s of copies."""
    report.say_device()
    report.note("torch", torch.__version__)
    if not report.tiny:
        _card(report)
    products(report)
    copies(report)


def _card(report: Report) -> None:
    with report.case("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        report.note("nvidia-smi", said.stdout.strip() or said.stderr.strip())
    properties = torch.cuda.get_device_properties(report.device)
    listed, shared = gpus.of_device(properties.name), flex.shared_memory(0)
    report.note("cuda", torch.version.cuda)
    report.note("capability", [properties.major, properties.minor])
    report.note("memory_gb", properties.total_memory / 1e9)
    report.note("shared_memory", shared)
    report.note("liger", importlib.util.find_spec("liger_kernel") is not None)
    report.note("listed_tflops", listed.bf16 / 1e12 if listed else None)
    if listed:  # the tables that launches are planned with
        as_listed = listed.capability == (properties.major, properties.minor)
        as_listed &= listed.shared_memory == shared
        as_listed &= listed.memory <= properties.total_memory
        told = {
            "memory_gb": listed.memory / 1e9,
            "capability": listed.capability,
            "shared_memory": listed.shared_memory,
        }
        report.note("listed", told, ok=as_listed)


def products(report: Report) -> None:
    """bf16 products: a large square one, and those of the output head with the rows of one chunk of the loss."""
    kind = {"device": report.device, "dtype": torch.float32 if report.tiny else torch.bfloat16}
    size = 256 if report.tiny else 8192
    with report.case("product"):
        a = torch.randn(size, size, **kind)
        report.note(f"tflops {size}", 2 * size**3 / timed_ms(report, lambda: a @ a) / 1e9)
    with report.case("head"):
        ids = vocabulary(report)
        head, hidden = torch.randn(ids, WIDTH, **kind), torch.randn(1024, WIDTH, **kind)
        for rows in (64, 226, 1024):
            spent = timed_ms(report, functools.partial(torch.mm, hidden[:rows], head.T))
            report.note(f"tflops head, {rows} rows", 2 * rows * WIDTH * ids / spent / 1e9)


def copies(report: Report) -> None:
    """Bytes a second on the device, and to it from pinned memory of the host."""
    size = 1 << (20 if report.tiny else 30)
    with report.case("copy"):
        there = torch.zeros(size, dtype=torch.uint8, device=report.device)
        report.note("copy_gb_s", 2 * size / timed_ms(report, there.clone) / 1e6)
        if not report.tiny:
            host = torch.zeros(size, dtype=torch.uint8).pin_memory()
            spent = timed_ms(report, lambda: there.copy_(host, non_blocking=True))
            report.note("host_to_device_gb_s", size / spent / 1e6)
