"""A tokenizer continued: what is added, what stays, and who reads it alike."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bafogpt.core import digest
from bafogpt.core.errors import DataError, UsageError
from bafogpt.data import sources, tokenizer
from bafogpt.data.vocabulary import files, word_counts
from bafogpt.data.vocabulary import protected_merges as protection
from bafogpt.data.vocabulary.bpe_merges import apply
from bafogpt.data.vocabulary.extend import ExtendOptions, ExtendReport, MergeLearner, extend

from .vocabulary import ENGLISH, ZULU, content_of, engine_of, ids

PIECES = 320
TEXT = st.text().map(lambda text: text.replace("▁", ""))
"""The library reads a ``▁`` in a text as a space, in every tokenizer of this kind."""
MIXED = st.lists(
    st.sampled_from(
        [*ZULU.split(), *ENGLISH[0].split(), " ", "  ", "\t", "\n\n", "😀", "é", "e\u0301", "<eos>", "2026"]
    )
    | TEXT,
    max_size=12,
).map("".join)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A base from the starter's English, and what continues it in isiZulu."""

    base: Path
    out: Path
    report: ExtendReport


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("tokenizers") / "zulu"
    options = ExtendOptions(pieces=PIECES - 20)
    return Made(base, out, extend(str(base), ["starter"], ["starter"], out, options=options, processes=1))


def test_the_base_stays_and_new_pieces_come_after_it(made: Made) -> None:
    base, new = content_of(made.base), content_of(made.out)
    learned = len(new["model"]["merges"]) - len(base["model"]["merges"])
    assert new["model"]["merges"][:-learned] == base["model"]["merges"]
    assert list(new["model"]["vocab"].items())[:700] == list(base["model"]["vocab"].items())
    assert sorted(new["model"]["vocab"].values()) == list(range(1024)), "700 + 300, on to a multiple of 64"
    assert (learned, made.report.learned, made.report.size, made.report.padding) == (324, 324, 1024, 0)
    assert {k: v for k, v in new.items() if k != "model"} == {k: v for k, v in base.items() if k != "model"}
    engine = engine_of(made.out)
    for piece, number in list(new["model"]["vocab"].items())[700:]:
        assert ids(engine, piece.replace("▁", " ")) == [number]
        assert word_counts.is_letters(piece)


def test_the_lineage_tells_what_it_was_made_of(made: Made) -> None:
    lineage = json.loads((made.out / "tokenizer.lineage.json").read_text(encoding="utf-8"))
    base, vocab = engine_of(made.base), content_of(made.out)["model"]["vocab"]
    assert lineage["base"] == {"name": "base", "digest": digest.of_file(made.base / "tokenizer.json"), "size": 700}
    assert lineage["tokenizer"] == digest.of_file(made.out / "tokenizer.json")
    assert lineage["settings"]["pieces"] == PIECES - 20
    read = {file.name: file for file in sources.find("starter")}
    for file in read.values():
        list(file.read())
    assert lineage["corpus"]["files"] == {name: file.digest for name, file in read.items()}
    assert [each["id"] for each in lineage["pieces"]] == list(range(700, 1024))
    counts = [each["count"] for each in lineage["pieces"]]
    assert counts == sorted(counts, reverse=True)
    for each in lineage["pieces"]:
        assert each["constituents"] == ids(base, each["piece"].replace("▁", " "))
        assert vocab[each["piece"]] == each["id"]


@given(text=MIXED)
@example(text="\t\n \x00\x1f\u200d👩🏽\u200d🚀 ▂ ngiyabonga\u202e isiZulu 中文 <bos> <0x41>")
def test_any_text_comes_back_and_is_cut_as_the_base_cuts_it_with_the_new_merges_applied(made: Made, text: str) -> None:
    base, new = _engines(made)
    cut = ids(new, text)
    assert new.decode(cut, skip_special_tokens=False) == text
    assert cut == apply(ids(base, text), _merges(made))


@given(st.lists(st.sampled_from([*ZULU.split(), *ENGLISH[1].split(), "x1y", "isi-Zulu", "Ngi'", "€5"]), max_size=9))
def test_a_text_is_cut_as_its_words_are(made: Made, chosen: list[str]) -> None:
    _, new = _engines(made)
    spelled = [f" {word}" for word in chosen]
    assert ids(new, "".join(spelled)) == [number for word in spelled for number in ids(new, word)]


def test_protected_text_keeps_its_tokens_and_costs_isizulu_little(made: Made, tmp_path: Path) -> None:
    base, new = _engines(made)
    english = word_counts.count(["starter"], "eng", replay=True, processes=1).counts
    zulu = word_counts.count(["starter"], "zul", replay=False, processes=1).counts
    kept = protection.protected_words(english, zulu)
    assert len(kept) == made.report.protected_words > 500
    assert [word for word in kept if ids(new, word) != ids(base, word)] == []
    replay = [each.text for each in sources.read_documents("starter") if each.stage == "replay"]
    assert [text for text in replay if ids(new, text) != ids(base, text)] == []
    extend(str(made.base), ["starter"], [], tmp_path / "free", options=ExtendOptions(pieces=PIECES), processes=1)
    free = engine_of(tmp_path / "free")
    assert any(ids(free, text) != ids(base, text) for text in replay), "without protection it would have changed"
    assert len(ids(new, ZULU)) < len(ids(base, ZULU))


def test_equal_inputs_give_equal_files_whatever_the_processes(made: Made, tmp_path: Path) -> None:
    options = ExtendOptions(pieces=PIECES - 20)
    extend(str(made.base), ["starter"], ["starter"], tmp_path / "again", options=options, processes=2)
    for name in ("tokenizer.json", "tokenizer.lineage.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made.out / name).read_bytes()


def test_a_padded_tokenizer_can_be_padded_again(made: Made, tmp_path: Path) -> None:
    for base, out, expected in ((made.base, "once", 18), (tmp_path / "once", "twice", 14)):
        options = ExtendOptions(pieces=50, pad=True)
        assert extend(str(base), ["starter"], [], tmp_path / out, options=options, processes=1).padding == expected
    vocab = content_of(tmp_path / "twice")["model"]["vocab"]
    assert [vocab[f"<padding_{number}>"] for number in (0, 17, 18, 31)] == [750, 767, 818, 831]


def test_an_extended_tokenizer_can_be_extended(made: Made, tmp_path: Path) -> None:
    extend(str(made.out), ["starter"], [], tmp_path / "more", options=ExtendOptions(pieces=64), processes=1)
    assert len(ids(engine_of(tmp_path / "more"), ZULU)) <= len(ids(engine_of(made.out), ZULU))


def test_a_pair_whose_text_is_cut_otherwise_when_alone_is_refused_and_another_takes_its_place(made: Made) -> None:
    base = files.load(str(made.base))
    units = Counter({(300, 301): 9, (302, 303): 5, (304, 305): 3})
    odd = base.pieces[300] + base.pieces[301]

    class Odd:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return SimpleNamespace(ids=[7]) if text == odd else base.engine.encode(text, add_special_tokens=False)

    learner = MergeLearner(dataclasses.replace(base, engine=Odd()), units, set())  # type: ignore[arg-type]
    learner.learn(2, lambda _: None)
    assert odd not in [piece.text for piece in learner.learned]
    assert learner.refused["has other tokens on its own"] >= 1


def test_a_pair_that_spells_a_piece_of_the_base_is_refused(made: Made, tmp_path: Path) -> None:
    content = content_of(made.base)
    learned = [tuple(merge) for merge in content_of(made.out)["model"]["merges"]][-324:]
    dead = "".join(learned[0])
    content["model"]["vocab"][dead] = 700  # in the vocabulary, but no merge makes it
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    options = ExtendOptions(pieces=64)
    report = extend(str(tmp_path), ["starter"], [], tmp_path / "out", options=options, processes=1)
    assert report.refused["spells an existing piece"] >= 1
    assert report.size == 768


def test_the_libraries_and_the_project_read_it_alike(made: Made) -> None:
    from litgpt.tokenizer import Tokenizer as LitTokenizer
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer.from_pretrained(made.out)

    own, lit, engine = tokenizer.load(str(made.out)), LitTokenizer(made.out), engine_of(made.out)
    for text in (*ENGLISH, ZULU, f"{ZULU}\n\n\t{ENGLISH[0]} 123 😀"):
        wanted = ids(engine, text)
        assert own.encode_batch([text])[0].tolist() == wanted
        assert lit.encode(text, bos=False).tolist() == wanted
        assert lit.decode(lit.encode(text, bos=False)) == own.decode(wanted) == text
        assert auto(text)["input_ids"] == engine.encode(text).ids
    assert (own.eos_id, own.bos_id, own.vocab_size, lit.vocab_size) == (1, 2, 1024, 1024)
    assert (lit.eos_id, lit.bos_id) == (1, 2)
    assert (len(auto), auto.eos_token_id, auto.bos_token_id) == (1024, 1, 2)


def broken(folder: Path, base: Path, **changes: Any) -> str:
    """The base with keys of the file, or of its model (``model_…``), changed."""
    content = content_of(base)
    for key, value in changes.items():
        inner = content["model"] if key.startswith("model_") else content
        inner[key.removeprefix("model_")] = value
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_merges": []}, "BPE without merges"),
        ({"model_continuing_subword_prefix": "##"}, "prefix"),
        ({"normalizer": None}, "byte-level BPE is not supported"),
        ({"normalizer": {"type": "NFC"}}, "byte-level BPE is not supported"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, r"pre-tokenizer \(Digits\)"),
    ],
)
def test_a_base_that_cannot_be_continued_says_why(
    made: Made, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        extend(broken(tmp_path, made.base, **changes), ["starter"], [], tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told_before_anything_is_written(made: Made, tmp_path: Path) -> None:
    base, out = str(made.base), tmp_path / "out"
    (tmp_path / "tokenizer.json").write_text('{"model": 5', encoding="utf-8")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        extend(str(tmp_path), ["starter"], [], out, processes=1)
    with pytest.raises(DataError, match=r"the corpus gives \d,\d\d\d pieces, not 50,052") as caught:
        extend(base, ["starter"], [], out, options=ExtendOptions(pieces=50_000), processes=1)
    possible = int(caught.value.hint.split()[1].rstrip(","))
    extend(base, ["starter"], [], out, options=ExtendOptions(pieces=possible), processes=1)
    with pytest.raises(UsageError, match="learned and protected at once"):
        ExtendOptions(language="eng")


def test_text_that_cannot_be_used_is_named(made: Made, tmp_path: Path) -> None:
    (tmp_path / "web.txt").write_text(ZULU, encoding="utf-16")
    with pytest.raises(DataError, match=r"web\.txt:1: not UTF-8 text") as caught:
        extend(str(made.base), ["starter", str(tmp_path / "web.txt")], [], tmp_path / "out", processes=2)
    assert caught.value.hint == f"file {tmp_path / 'web.txt'}", "also from another process"
    with pytest.raises(DataError, match="no text in 'fra'"):
        options = ExtendOptions(protect_language="fra", pieces=10)
        extend(str(made.base), ["starter"], ["starter"], tmp_path / "out", options=options, processes=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "web.txt"]


@functools.cache
def _engines(made: Made) -> tuple[Any, Any]:
    """The base and the extended tokenizer."""
    return engine_of(made.base), engine_of(made.out)


@functools.cache
def _merges(made: Made) -> dict[tuple[int, int], int]:
    lineage = json.loads((made.out / "tokenizer.lineage.json").read_text(encoding="utf-8"))
    return {(each["merge"][0], each["merge"][1]): each["id"] for each in lineage["pieces"]}
