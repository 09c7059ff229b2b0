"""The fused loss against cross-entropy as it is written in books."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bafogpt.model import loss as losses
from bafogpt.model.loss import IGNORE, linear_cross_entropy
from bafogpt.model.loss_chunks import chunk_rows

from .small_models import small, text

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def parts(ignored: bool) -> Parts:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(50, 24, generator=generator, requires_grad=True)
    weight = torch.randn(210, 24, generator=generator, requires_grad=True)
    targets = torch.randint(0, 210, (50,), generator=generator)
    if ignored:
        targets[::3] = IGNORE
    return hidden, weight, targets


def naive(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None, z: float
) -> torch.Tensor:
    logits = hidden @ weight.mT
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_sum = torch.logsumexp(logits, -1)
    entropy = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return entropy + z * (log_sum[targets != IGNORE] ** 2).sum()


@pytest.mark.parametrize("rows", [1, 7, 50, 999])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    softcap: float | None, z: float, ignored: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "chunk_rows", lambda vocabulary, tokens, gpu: min(rows, tokens))
    hidden, weight, targets = parts(ignored)
    ours = linear_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z)
    found = torch.autograd.grad(ours * 0.37, (hidden, weight))
    exact = tuple(each.detach().double().requires_grad_() for each in (hidden, weight))
    theirs = naive(*exact, targets, softcap, z)
    expected = torch.autograd.grad(theirs * 0.37, exact)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_an_ignored_target_has_no_gradient() -> None:
    hidden, weight, targets = parts(ignored=True)
    linear_cross_entropy(hidden, weight, targets, softcap=30.0, z_loss=0.1).backward()
    assert hidden.grad is not None
    assert hidden.grad[targets == IGNORE].abs().max() == 0
    assert hidden.grad[targets != IGNORE].abs().amin(1).min() > 0


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    hidden, weight, targets = parts(ignored=False)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_without_gradients_the_loss_is_the_same_and_none_are_made() -> None:
    hidden, weight, targets = parts(ignored=True)
    with torch.no_grad():
        measured = linear_cross_entropy(hidden, weight, targets, softcap=30.0)
    trained = linear_cross_entropy(hidden, weight, targets, softcap=30.0)
    assert measured.equal(trained)
    assert not measured.requires_grad


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, weight, targets = parts(ignored=False)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_in_bfloat16_it_is_as_close_as_bfloat16_is() -> None:
    hidden, weight, targets = parts(ignored=True)
    ours = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, softcap=30.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = linear_cross_entropy(hidden, weight, targets, softcap=30.0)
    exact = naive(hidden, weight, targets, 30.0, 0.0)
    assert ours.dtype == torch.float32
    assert ours.equal(cast)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-2)
    found = torch.autograd.grad(cast, (hidden, weight))
    for a, b in zip(found, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 2e-2 * b.norm()


def test_the_models_loss_is_the_cross_entropy_of_its_logits_and_its_gradients_those() -> None:
    for tied in (True, False):
        ours, plain = small(tied=tied), small(tied=tied)
        ids, targets = text(2, 40), text(2, 40, seed=8)
        targets[0, :9] = IGNORE
        loss = ours(ids, targets)
        expected = nn.functional.cross_entropy(
            plain(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        expected.backward()
        for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm(), name


def test_the_z_loss_is_for_training_only() -> None:
    model = small()
    ids = text(2, 20)
    plain = model(ids, ids)
    model.z_loss = 0.1
    assert model(ids, ids) > plain
    assert model.eval()(ids, ids).equal(plain)


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "rows"),
    [
        *((296_000, 4096, 1024), (296_000, 8192, 1024), (296_000, 600, 600), (296_000, 1100, 640)),
        *((256_000, 4096, 1024), (32_000, 8192, 8192), (10**9, 4096, 128)),
    ],
)
def test_a_gpu_makes_some_thousand_rows_of_large_logits_at_a_time(vocabulary: int, tokens: int, rows: int) -> None:
    assert chunk_rows(vocabulary, tokens, gpu=True) == rows
