"""The table of GPUs, and floating point operations with and without an adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from bafogpt.jobs.model_shape import KNOWN
from bafogpt.model.adapter import AdapterConfig
from bafogpt.train import metrics
from bafogpt.train.estimates import flops, gpus

GEMMA = replace(KNOWN["Gemma-2-2b"], padded_vocab_size=296_000)


@dataclass
class Device:
    """What torch says of one."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    clock_rate: int


@pytest.mark.parametrize(
    ("device", "accelerator", "bf16", "bandwidth"),
    [
        ("NVIDIA L40", "L40", 181e12, 864e9),
        ("NVIDIA A10G", "A10G", 70e12, 600e9),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM", 312e12, 2_039e9),
        ("NVIDIA H100 80GB HBM3", "H100-SXM", 989e12, 3_350e9),
        ("NVIDIA H100 NVL", "h100-nvl", 835e12, 3_900e9),
        ("NVIDIA GeForce RTX 4090", "RTX4090", 165e12, 1_008e9),
        ("GeForce RTX 3090", "RTX3090", 71e12, 936e9),
    ],
)
def test_a_card_is_found_by_its_drivers_name_and_by_skypilots(device, accelerator, bf16, bandwidth):
    found = gpus.of_device(device)

    assert found is not None and found is gpus.of_accelerator(accelerator)
    assert (found.bf16, found.bandwidth) == (bf16, bandwidth)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 D", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA L400", ""])
def test_a_card_that_resembles_a_listed_one_is_unlisted(name):
    assert gpus.of_device(name) is None


def test_every_card_has_unique_names_a_source_and_shared_memory():
    names = [name.lower() for gpu in gpus.GPUS for name in gpu.accelerators]
    assert len(names) == len(set(names))
    for gpu in gpus.GPUS:
        assert gpu.source and gpu.shared_memory in (101_376, 166_912, 232_448)
    assert gpus.same("l40", "L40") and not gpus.same("L40", "L40S") and gpus.same("H200", "H200-SXM")
    assert gpus.same("MI300X", "mi300x") and not gpus.same("MI300X", "MI250")


@pytest.mark.parametrize(
    ("device", "data_sheet"),
    [
        (Device("NVIDIA A100-SXM4-40GB", 8, 0, 108, 1_410_000), 312e12),
        (Device("NVIDIA A10", 8, 6, 72, 1_695_000), 125e12),
        (Device("NVIDIA L40S", 8, 9, 142, 2_520_000), 362e12),
        (Device("NVIDIA GeForce RTX 4090", 8, 9, 128, 2_520_000), 165e12),
        (Device("NVIDIA GeForce RTX 3090", 8, 6, 82, 1_695_000), 71e12),
        (Device("NVIDIA GeForce RTX 5090", 12, 0, 170, 2_407_000), 209e12),
    ],
)
def test_the_peak_of_an_unlisted_card_comes_from_its_multiprocessors_and_clock(device, data_sheet):
    assert gpus.derived_bf16(device) == pytest.approx(data_sheet, rel=0.02)
    assert gpus.derived_bf16(replace(device, major=99)) is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        (Device("NVIDIA H100 PCIe", 9, 0, 114, 1_755_000), 756e12),
        (Device("NVIDIA RTX 6000 Ada Generation", 8, 9, 142, 2_505_000), 142 * 2_505e6 * 1024),
    ],
)
def test_mfu_is_relative_to_the_cards_own_peak(device, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)

    assert metrics.peak_flops(torch.device("cuda")) == peak


def test_a_frozen_matrix_costs_four_operations_a_weight_and_an_adapters_six():
    adapter = AdapterConfig(r=16)
    attention = flops.attention_flops(GEMMA, 2048)

    assert flops.adapter_weights(GEMMA, adapter) == 16 * (26 * (2304 + 2048 + 2 * (2304 + 1024) + 2048 + 2304))
    whole, tuned = flops.flops_per_token(GEMMA, 2048), flops.flops_per_token(GEMMA, 2048, adapter)
    assert whole == 6 * flops.matrix_weights(GEMMA) + attention
    assert tuned == 4 * flops.matrix_weights(GEMMA) + 6 * flops.adapter_weights(GEMMA, adapter) + attention


def test_an_embeddings_adapter_multiplies_only_its_second_matrix():
    adapter = AdapterConfig(r=8, targets=("embedding",))
    tuned = flops.flops_per_token(GEMMA, 2048, adapter)

    assert tuned - 4 * flops.matrix_weights(GEMMA) - flops.attention_flops(GEMMA, 2048) == 6 * 8 * 2304


@pytest.mark.parametrize("length", [512, 4096, 5000, 8192])
def test_attention_flops_follow_mask_and_window(length):
    pairs = sum(sum(min(t, w) for t in range(1, length + 1)) for w in [4096, length] * 13)
    exact = 12 * 8 * 256 * pairs / length

    assert flops.attention_flops(GEMMA, length) == pytest.approx(exact, rel=0.003)
