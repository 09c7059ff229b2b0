"""The text that models are measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.core.settings import Settings
from bafogpt.model import eval_samples
from bafogpt.model.formats.folder import ModelFolder
from tests.talking import make_model

TEXT = "Sawubona mhlaba, ngiyabonga kakhulu. " * 20


def test_the_loss_of_new_pieces_and_of_old_ones_add_up_to_the_whole(tmp_path: Path) -> None:
    folder = ModelFolder.open(make_model(tmp_path / "model"))
    whole, parts = eval_samples.measure(folder, TEXT), eval_samples.measure(folder, TEXT, first_new=40)
    assert (whole.new_tokens, whole.new_loss) == (0, None)
    assert whole.old_loss == whole.loss == pytest.approx(parts.loss)
    assert 0 < parts.new_tokens < parts.tokens
    assert parts.new_loss and parts.old_loss
    added = parts.new_loss * parts.new_tokens + parts.old_loss * (parts.tokens - parts.new_tokens)
    assert added == pytest.approx(parts.loss * parts.tokens)


def test_samples_of_text_fill_the_models_positions(tmp_path: Path) -> None:
    folder = ModelFolder.open(make_model(tmp_path / "model"))
    assert [len(each) for each in eval_samples.text_samples(folder, ["starter"], Settings(), count=2, tokens=48)] == [
        48,
        48,
    ]
