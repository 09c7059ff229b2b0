"""What nvidia-smi prints, and a program of that name that fails, hangs or babbles: each ends soon and clearly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bafogpt.core import nvidia_smi
from bafogpt.core.nvidia_smi import NvidiaSmiError
from tests.smi import FakeSmi

SMI = """\
0, GPU-9b, NVIDIA L40, 550.54.15, 97, 44321, 46068, 71, 288.41
1, GPU-9c, NVIDIA L40, 550.54.15, [N/A], 3, 46068, 35, [N/A]
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
    return FakeSmi(tmp_path / "bin", monkeypatch)


def test_gpus_are_read_as_nvidia_smi_prints_them_and_what_it_does_not_know_is_null(smi: FakeSmi):
    smi.script(f"cat <<'END'\n{SMI}END")
    busy, idle = nvidia_smi.gpus()
    assert busy == {
        "name": "NVIDIA L40",
        "driver": "550.54.15",
        "utilization": 0.97,
        "memory_used": 44321 << 20,
        "memory_total": 46068 << 20,
        "temperature": 71.0,
        "power": 288.41,
    }
    assert idle["utilization"] is idle["power"] is None
    assert [gpu.uuid for gpu in nvidia_smi.query()] == ["GPU-9b", "GPU-9c"]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo broken; exit 9", "failed with exit code 9: broken"),
        ("exec sleep 60", r"did not answer within 0\.3 s"),
        ("sleep 60 & echo '0, GPU-0, NVIDIA L40'; wait", r"did not answer within 0\.3 s"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'", "Driver/library version mismatch"),
        ("printf '\\000\\033[31m,,\\377'", "is not what was asked for"),
        ("printf 'x, GPU-0, NVIDIA L40, 1, 2, 3, 4, 5, 6\\n'", "is not a GPU"),
        (f"echo {'9' * 5000}, GPU-0, NVIDIA L40, 1, 2, 3, 4, 5, 6", "is not a GPU"),
        ("exec yes", "more than 4096 bytes"),
        ("head -c 200000 /dev/zero | tr '\\0' '\"'", "nvidia-smi printed"),
    ],
)
def test_a_driver_that_fails_hangs_or_babbles_is_an_error_soon_and_a_machine_without_gpus_in_records(
    smi: FakeSmi, monkeypatch: pytest.MonkeyPatch, script: str, error: str
):
    smi.script(script)
    monkeypatch.setattr(nvidia_smi, "TIMEOUT_S", 0.3 if "sleep" in script else 20.0)
    monkeypatch.setattr(nvidia_smi, "MAX_BYTES", 4096 if "yes" in script else 1 << 20)
    started = time.monotonic()
    with pytest.raises(NvidiaSmiError, match=error):
        nvidia_smi.query()
    assert nvidia_smi.gpus() == [] and nvidia_smi.count() == 0
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("", []), ("-1", []), ("1", [1]), ("0, 1", [0, 1]), ("GPU-9c", [1]), ("MIG-7a", [0, 1])],
)
def test_only_the_gpus_that_cuda_will_show_count(
    smi: FakeSmi, monkeypatch: pytest.MonkeyPatch, devices: str, expected: list[int]
):
    smi.script(f"cat <<'END'\n{SMI}END")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert [gpu.index for gpu in nvidia_smi.query()] == expected


def test_processes_on_gpus_are_listed_and_a_machine_without_nvidia_smi_has_no_gpus(
    smi: FakeSmi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    smi.gpus("NVIDIA L40", programs="GPU-0, 4711, python, 20480\n")
    (program,) = nvidia_smi.compute_processes()
    assert (program.gpu_uuid, program.pid, program.name) == ("GPU-0", 4711, "python")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi.query() == []


@pytest.mark.parametrize("used", ["-5", "1e308", "1e400", "inf", "nan", "", "N/A"])
def test_a_number_that_no_gpu_can_have_is_none(used: str):
    (gpu,) = nvidia_smi.parse(f"0, GPU-1, NVIDIA L40, 580.65.06, 0, {used}, 45467, 40, 70\n")
    assert gpu.memory_used is None


def test_a_warning_between_the_gpus_is_passed_over():
    text = "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n0, GPU-1, NVIDIA L40, 580.65.06, 0, 1, 45467, 40, 70\n"
    assert [gpu.name for gpu in nvidia_smi.parse(text)] == ["NVIDIA L40"]
