"""``tokenizer.model`` beside ``tokenizer.json``: the same ids from SentencePiece, or no file and the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from typer.testing import CliRunner

from bafogpt.cli.main import app
from bafogpt.data.vocabulary import files, sentencepiece_model
from bafogpt.data.vocabulary.extend import ExtendOptions, ExtendReport, extend
from bafogpt.data.vocabulary.sentencepiece_model import UNUSUAL

from .vocabulary import ENGLISH, ZULU, content_of, engine_of, ids

TEXT = st.lists(st.sampled_from([*ZULU.split(), *ENGLISH[0].split(), *UNUSUAL]) | st.text(), max_size=12).map(
    lambda parts: "".join(parts).replace("▁", "")
)
"""Without the literal ``▁``: there the two libraries are known to differ."""


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extended") / "zulu"
    extended(base, out)
    return out


def extended(base: Path, out: Path, pieces: int = 68, *, pad: bool = False) -> ExtendReport:
    return extend(str(base), ["starter"], ["starter"], out, options=ExtendOptions(pieces=pieces, pad=pad), processes=1)


def model_of(folder: Path) -> Any:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def rewrite(folder: Path, change: Any) -> None:
    content = content_of(folder)
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


@given(TEXT)
@example("".join(UNUSUAL))
@example(" " * 100 + "x" + "\n" * 50 + "\t" * 40)
def test_both_files_give_the_same_ids(made: Path, text: str) -> None:
    assert model_of(made).encode(text) == ids(engine_of(made), text)


def test_pieces_have_the_types_and_special_ids_that_the_base_has(made: Path) -> None:
    model, vocab = model_of(made), content_of(made)["model"]["vocab"]
    assert [model.id_to_piece(number) for number in range(model.get_piece_size())] == list(vocab)
    assert (model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id()) == (0, 1, 2, 3)
    assert [number for number in range(len(vocab)) if model.is_control(number)] == [0, 1, 2]
    assert [number for number in range(len(vocab)) if model.is_byte(number)] == list(range(4, 260))
    assert model.decode(model.encode(f"  {ZULU}  😀\n")) == f"  {ZULU}  😀\n"


def test_a_bases_own_file_is_continued_with_its_scores_kept(made: Path, tmp_path: Path) -> None:
    report = extended(made, tmp_path / "more", 64)
    first, second = model_of(made), model_of(tmp_path / "more")
    size = first.get_piece_size()
    scores = [second.get_score(number) for number in range(second.get_piece_size())]
    assert report.tokenizer_model.refused == ""
    assert scores[:size] == [first.get_score(number) for number in range(size)]
    assert scores[size:] == [min(scores[:size]) - 1 - index for index in range(64)]
    for text in (ZULU, *ENGLISH, *UNUSUAL):
        assert second.encode(text) == ids(engine_of(tmp_path / "more"), text)


def test_an_added_token_beyond_the_vocabulary_keeps_its_id_in_both_files(made: Path, tmp_path: Path) -> None:
    """As Gemma-3's ``<image_soft_token>``, whose id is one past its tokenizer.model."""
    folder = copy_of(made, tmp_path / "base")
    token = {**content_of(made)["added_tokens"][0], "id": 768, "content": "<image>"}
    rewrite(folder, lambda content: content["added_tokens"].append(token))
    report = extended(folder, tmp_path / "more", 63)
    model = model_of(tmp_path / "more")
    assert (report.base_size, report.tokenizer_model.refused) == (769, "")
    assert (model.id_to_piece(768), model.is_control(768)) == ("<image>", True)
    assert engine_of(tmp_path / "more").token_to_id("<image>") == 768
    assert model.encode(f"<image>{ZULU}") == ids(engine_of(tmp_path / "more"), f"<image>{ZULU}")


def test_padding_is_unused_pieces(base: Path, tmp_path: Path) -> None:
    report = extended(base, tmp_path / "padded", 60, pad=True)
    model = model_of(tmp_path / "padded")
    assert report.padding == 8
    assert [number for number in range(768) if model.is_unused(number)] == list(range(760, 768))


def wrong_merge_order(folder: Path) -> str:
    loaded = files.load(str(folder))
    loaded.content["model"]["merges"].reverse()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.extended(loaded, [], 0))
    return "texts have other ids than in tokenizer.json"


def another_tokenizer(folder: Path) -> str:
    loaded = files.load(str(folder))
    vocab = list(loaded.pieces)
    vocab[600], vocab[601] = vocab[601], vocab[600]
    swapped = files.Base(loaded.file, loaded.digest, loaded.content, loaded.engine, vocab, loaded.letters)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.extended(swapped, [], 0))
    return "is of another tokenizer (id 600)"


def torn(folder: Path) -> str:
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff")
    return "not a SentencePiece model"


def no_byte_fallback(folder: Path) -> str:
    rewrite(folder, lambda content: content["model"].update(byte_fallback=False))
    return "no byte fallback"


def stripping_token(folder: Path) -> str:
    rewrite(folder, lambda content: content["added_tokens"][0].update(lstrip=True))
    return "added tokens that strip"


@pytest.mark.parametrize("spoil", [wrong_merge_order, another_tokenizer, torn, no_byte_fallback, stripping_token])
def test_a_file_that_would_differ_is_not_written_and_the_reason_is_printed(
    base: Path, tmp_path: Path, spoil: Any
) -> None:
    folder, out = copy_of(base, tmp_path / "base"), tmp_path / "out"
    reason = spoil(folder)
    options = ("--base", str(folder), "--corpus", "starter", "--pieces", "68", "--out", str(out))
    done = CliRunner().invoke(app, ["tokenizer", "extend", *options])
    assert done.exit_code == 0, done.output
    assert (out / "tokenizer.json").is_file() and not (out / "tokenizer.model").exists()
    assert "no tokenizer.model (SentencePiece): " in done.output and reason in " ".join(done.output.split())


def test_without_the_sentencepiece_package_no_unchecked_file_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    report = extended(base, tmp_path / "out")
    assert "not installed" in report.tokenizer_model.refused
    assert not (tmp_path / "out" / "tokenizer.model").exists()
