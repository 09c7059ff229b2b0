"""The real thing: Gemma-2's tokenizer, a million words of isiZulu, and sentences that were not learned from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from bafogpt.data.vocabulary.bpe_merges import apply
from bafogpt.data.vocabulary.extend import ExtendReport, extend
from bafogpt.data.vocabulary.report import read_lines, report
from bafogpt.data.vocabulary.sentencepiece_model import UNUSUAL

from .vocabulary import CORPUS, ENGLISH, GEMMA, NTREX, ZULU, engine_of, ids, require_shared

pytestmark = pytest.mark.slow

TEXT = st.lists(
    st.sampled_from(
        [*ZULU.split(), *ENGLISH[0].split(), " ", "  ", "\t", "\t\t", "\n\n", "\r\n", "😀", "👩🏽‍🚀", "<bos>"]
    )
    | st.text(),
    max_size=12,
).map(lambda parts: "".join(parts).replace("▁", ""))


@dataclasses.dataclass(frozen=True)
class Real:
    """Gemma's tokenizer with 40,000 pieces more."""

    out: Path
    report: ExtendReport
    base: Any
    engine: Any


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    require_shared(GEMMA, CORPUS, NTREX)
    out = tmp_path_factory.mktemp("gemma") / "zulu"
    made = extend(str(GEMMA), [str(CORPUS)], [str(CORPUS)], out)
    return Real(out, made, engine_of(GEMMA), engine_of(out))


def test_forty_thousand_pieces_bring_unseen_isizulu_below_two_tokens_a_word(real: Real) -> None:
    base, new = report([str(GEMMA), str(real.out)], [str(NTREX)], [str(NTREX)])
    assert (new.size, new.new, new.unreachable) == (296_000, 40_000, 0)
    assert base.text.tokens_per_word > 3.1
    assert new.text.tokens_per_word <= 1.90
    assert new.protected is not None and base.protected is not None
    assert new.protected.changed <= new.protected.lines / 1000, new.protected.changed_words
    assert new.protected.tokens_per_word <= base.protected.tokens_per_word


def test_every_piece_is_cut_into_itself_and_its_constituents_are_gemmas(real: Real) -> None:
    lineage = json.loads((real.out / "tokenizer.lineage.json").read_text(encoding="utf-8"))
    for each in lineage["pieces"]:
        text = each["piece"].replace("▁", " ")
        assert ids(real.engine, text) == [each["id"]]
    for each in lineage["pieces"][::100]:
        assert ids(real.base, each["piece"].replace("▁", " ")) == each["constituents"]


def test_unseen_text_is_cut_as_gemma_cuts_it_with_the_new_merges_applied(real: Real) -> None:
    lineage = json.loads((real.out / "tokenizer.lineage.json").read_text(encoding="utf-8"))
    merges = {(each["merge"][0], each["merge"][1]): each["id"] for each in lineage["pieces"]}
    for line in read_lines([str(NTREX)], "zul", False)[:300]:
        assert ids(real.engine, line) == apply(ids(real.base, line), merges)


def test_sentencepiece_gives_the_same_ids(real: Real) -> None:
    model = SentencePieceProcessor(model_file=str(real.out / "tokenizer.model"))
    check = real.report.tokenizer_model
    assert check.refused == "" and check.texts > 300_000
    assert (model.get_piece_size(), model.bos_id(), model.id_to_piece(226)) == (296_000, 2, "<0x09>")
    for text in [*read_lines([str(NTREX)], "zul", False), *read_lines([str(NTREX)], "eng", True), *UNUSUAL]:
        assert model.encode(text) == ids(real.engine, text)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_sentencepiece_gives_the_same_ids_for_any_text(real: Real, text: str) -> None:
    model = SentencePieceProcessor(model_file=str(real.out / "tokenizer.model"))
    assert model.encode(text) == ids(real.engine, text)


def test_transformers_and_litgpt_read_it_alike(real: Real) -> None:
    transformers = pytest.importorskip("transformers")
    from litgpt.tokenizer import Tokenizer as LitTokenizer

    auto, lit = transformers.AutoTokenizer.from_pretrained(real.out), LitTokenizer(real.out)
    for line in [*read_lines([str(NTREX)], "zul", False)[:200], *read_lines([str(NTREX)], "eng", True)[:200]]:
        wanted = real.engine.encode(line).ids
        assert auto(line)["input_ids"] == wanted
        assert lit.encode(line).tolist() == wanted
    assert len(auto) == 296_000
