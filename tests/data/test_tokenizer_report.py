"""What tokenizers are worth, a tokenizer from nothing, and ``bafogpt tokenizer`` as a person types it."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.cli import main as root
from bafogpt.core.errors import DataError
from bafogpt.data.vocabulary import plot
from bafogpt.data.vocabulary.report import report
from bafogpt.data.vocabulary.train import SPECIAL, train

from .vocabulary import ENGLISH, ZULU, content_of, engine_of, ids


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sentences in two languages, as evaluation sets have them: no text, no stage."""
    path = tmp_path / "pairs.jsonl.gz"
    lines = [{"eng": ENGLISH[0], "zul": ZULU}, {"eng": ENGLISH[1], "zul": "Siyabonga, mngane wami."}]
    path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
    return path


def planted(base: Path, folder: Path) -> Path:
    """The base with two pieces more: one that touches English, and one that no merge makes."""
    content = content_of(base)
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    engine = engine_of(base)
    first, second = (engine.id_to_token(each) for each in ids(engine, " station.")[:2])
    vocab[first + second] = 700
    merges.append([first, second])
    vocab["qhawekazi"] = 701
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_report_counts_what_can_be_counted_by_hand(base: Path, pairs: Path, tmp_path: Path) -> None:
    other = planted(base, tmp_path / "planted")
    first, second = report([str(base), str(other)], [str(pairs)], [str(pairs)])
    engine = engine_of(base)
    zulu = [ZULU, "Siyabonga, mngane wami."]
    assert first.text.tokens == sum(len(ids(engine, line)) for line in zulu)
    assert first.text.words == sum(len(line.split()) for line in zulu)
    assert first.text.bytes_per_token == first.text.bytes / first.text.tokens
    assert (first.name, first.size, first.new, first.unreachable) == ("base", 700, 0, 0)
    assert (second.size, second.new, second.unreachable_pieces) == (702, 2, ["qhawekazi"])
    assert second.protected is not None
    assert (second.protected.changed, second.protected.lines) == (1, 2)
    assert second.protected.changed_words == ["station."]
    assert second.protected.used_new == 1
    assert second.protected.tokens == sum(len(ids(engine, line)) for line in ENGLISH) - 1


def test_a_sentencepiece_model_is_measured_like_any_other(base: Path, pairs: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = tmp_path / "other.model"
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*ENGLISH, ZULU] * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=360,
            byte_fallback=True,
            minloglevel=2,
        )
    first, second = report([str(base), str(model)], [str(pairs)], [str(pairs)])
    assert (second.name, second.size, second.unreachable) == ("other", 360, 0), second.unreachable_pieces
    assert second.protected is not None and first.protected is not None
    assert second.protected.changed == 2
    assert 0 < second.text.tokens_per_word < first.text.tokens_per_word


def test_the_picture_is_the_same_each_time_and_says_its_format(base: Path, pairs: Path, tmp_path: Path) -> None:
    rows = report([str(base)], [str(pairs)], [str(pairs)])
    for name in ("a.svg", "b.svg"):
        plot.draw(rows, tmp_path / name, "zul", "eng")
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert b"base" in drawn and f"{rows[0].text.tokens_per_word:.2f}".encode() in drawn
    plot.draw(report([str(base)], [str(pairs)]), tmp_path / "c.png", "zul", "eng")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_tokenizer_from_nothing_holds_what_was_asked_for(base: Path, tmp_path: Path) -> None:
    content, engine = content_of(base), engine_of(base)
    vocab = content["model"]["vocab"]
    assert [vocab[each] for each in SPECIAL] == [0, 1, 2, 3]
    assert vocab["<0x00>"] == 4 and vocab["<0xFF>"] == 259 and len(vocab) == 700
    assert engine.encode("The").ids[0] == 2, "a text begins with <bos> when special tokens are wanted"
    assert ids(engine, "2026")[1:] == [n for d in "026" for n in ids(engine, d)], "digits stand alone"
    train(["starter"], tmp_path / "again", pieces=700, language="eng")
    assert content_of(tmp_path / "again") == content


@given(st.text().map(lambda text: text.replace("▁", "")))
def test_a_tokenizer_from_nothing_gives_back_every_text(base: Path, text: str) -> None:
    engine = _engine(base)
    assert engine.decode(ids(engine, text), skip_special_tokens=False) == text


@functools.cache
def _engine(folder: Path) -> Any:
    return engine_of(folder)


def test_too_little_text_for_a_tokenizer_says_how_much_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the corpus gives [\d,]+ pieces, not 40,000"):
        train(["starter"], tmp_path / "out")
    with pytest.raises(DataError, match="no text in 'fra'"):
        (tmp_path / "a.jsonl").write_text('{"text": "yebo", "lang": "zul"}\n')
        train([str(tmp_path / "a.jsonl")], tmp_path / "out", language="fra")
    assert not (tmp_path / "out").exists()


def test_extend_then_report_on_the_command_line(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "zulu")
    words = ["tokenizer", "extend", "--base", str(base), "--corpus", "starter", "--protect", "starter", "--out", out]
    assert root.main([*words, "--pieces", "324"]) == 0
    assert "324 pieces after the base's 700: 1,024 in all" in capsys.readouterr().out
    drawn = tmp_path / "bars.svg"
    measure = ["tokenizer", "report", str(base), out, "--text", str(pairs), "--protected", str(pairs)]
    assert root.main([*measure, "--picture", str(drawn)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in table[1:]] == ["base", "zulu"]
    assert drawn.is_file()
    assert root.main([*measure, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[1]["new"] == 324 and rows[1]["unreachable"] == 0
    assert rows[1]["text"]["tokens_per_word"] < rows[0]["text"]["tokens_per_word"]


def test_train_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own"
    words = ["tokenizer", "train", "--corpus", "starter", "--pieces", "600", "--out", str(out), "--json"]
    assert root.main(words) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 600
    assert engine_of(out).get_vocab_size() == 600


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["extend", "-b", "nowhere", "-c", "starter", "-o", "x"], 1, "no tokenizer at nowhere"),
        (["extend", "-b", "BASE", "-c", "nowhere", "-o", "x"], 1, "nowhere does not exist"),
        (["extend", "-b", "BASE", "-c", "starter", "-o", "BASE"], 1, "exists already"),
        (["extend", "-b", "BASE", "-c", "starter", "-o", "x", "--pieces", "90000"], 1, "the corpus gives"),
        (["extend", "-b", "BASE", "-c", "starter", "-o", "x", "--language", "zu"], 1, "no text in 'zu'"),
        (["extend", "-b", "BASE", "-c", "starter", "-o", "x", "--pieces", "0"], 2, "is not a number of pieces"),
        (["report", "README", "--text", "starter"], 1, "not a tokenizer.json"),
        (["report", "a.model", "--text", "starter"], 1, "not a SentencePiece model"),
        (["report", "BASE", "--text", "nowhere"], 1, "nowhere does not exist"),
        (["report", "BASE", "--text", "starter", "--picture", "a.gif"], 2, "not a .svg or .png file"),
        (["train", "-c", "starter", "-o", "x", "--pieces", "3"], 2, "is too few"),
    ],
)
def test_mistakes_are_two_lines(
    words: list[str], code: int, problem: str, base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("README", "a.model"):
        (tmp_path / name).write_text("{}")
    assert root.main(["tokenizer", *(str(base) if word == "BASE" else word for word in words), "-q"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err
    assert len(captured.err.strip().splitlines()) == 2
    assert not (tmp_path / "x").exists()
