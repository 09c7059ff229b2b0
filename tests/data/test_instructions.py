"""Instruction files to datasets: packed, mixed, split without leaks, and what is wrong said by file and line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.core.errors import ConflictError, DataError, UsageError
from bafogpt.data import instruction_mix, instructions, packing, prompts, tokenizer
from bafogpt.data.instruction_mix import InstructionRecord
from bafogpt.data.instructions import InstructionOptions, InstructionReport
from bafogpt.data.messages import Message
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.stream import Samples, TokenStream

from .vocabulary import GEMMA, require_shared

BYTES = tokenizer.load("bytes")
PLAIN = prompts.load("plain", BYTES)
Corpus = Callable[..., Path]


def make(out: Bucket, *files: Any, style: str = "plain", **options: Any) -> InstructionReport:
    chosen = {"context": 64, "validation": 0.0, **options}
    return instructions.prepare(
        [str(each) for each in files],
        style=prompts.load(style, BYTES),
        tokenizer=BYTES,
        out=out,
        options=InstructionOptions(**chosen),
    )


def ask(number: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"Ubani {number}?", "output": f"U{number}.", **more}


def samples_of(out: Bucket, split: str = "train") -> Samples:
    manifest = manifests.load(out)
    assert manifest.packing is not None
    return Samples(TokenStream(out, manifest, split), manifest.packing.sequence_length)


def learned(samples: Samples) -> str:
    stream = samples.stream
    return BYTES.decode(stream.read(0, stream.tokens)[stream.learned(0, stream.tokens)])


def conversations(samples: Samples) -> list[str]:
    """The text of every document, with neither special tokens nor what fills a sample up."""
    stream = samples.stream
    begins = [*stream.documents(0, stream.tokens).tolist(), stream.tokens]
    texts = [BYTES.decode(stream.read(begin, end - begin)) for begin, end in itertools.pairwise(begins)]
    return [text for text in texts if text]


def test_conversations_fill_samples_none_crosses_a_border_and_only_answers_are_learned(
    local: Bucket, corpus: Corpus
) -> None:
    report = make(local, corpus("a.jsonl", *(ask(number) for number in range(40))))
    samples = samples_of(local)
    assert sorted(conversations(samples)) == sorted(f"Ubani {n}?\nU{n}." for n in range(40))
    begins = samples.stream.documents(0, samples.stream.tokens)
    assert set(range(0, samples.stream.tokens, 64)) <= set(begins.tolist()), "a document begins with every sample"
    assert sorted(learned(samples).split(".")) == sorted(["", *(f"U{n}" for n in range(40))])
    assert samples.count == report.samples["train"] == (samples.stream.tokens - 1) // 64
    assert report.conversations == {"train": 40, "validation": 0}
    assert report.filled == pytest.approx(report.tokens / (64 * samples.count))
    assert report.filled > 0.85


def test_the_end_of_an_answer_is_learned_and_the_question_after_it_is_not(local: Bucket, corpus: Corpus) -> None:
    make(local, corpus("a.jsonl", ask(1), ask(2)))
    stream = samples_of(local).stream
    ids, flags = stream.read(0, stream.tokens), stream.learned(0, stream.tokens)
    ends = np.flatnonzero(flags & (ids == BYTES.eos_id))
    assert len(ends) == 2
    assert not flags[ends + 1].any()
    assert not flags[stream.documents(0, stream.tokens)].any()


def test_everything_but_each_first_token_is_learned_where_that_is_asked_for(local: Bucket, corpus: Corpus) -> None:
    make(local, corpus("a.jsonl", ask(1), ask(2)), learn="all")
    samples = samples_of(local)
    assert sorted(learned(samples).split(".")) == ["", "Ubani 1?\nU1", "Ubani 2?\nU2"]


def test_the_same_files_give_the_same_dataset_and_another_seed_another_order(local: Bucket, corpus: Corpus) -> None:
    path = corpus("a.jsonl", *(ask(number) for number in range(40)))
    make(local, path)
    with pytest.raises(ConflictError):
        make(local, path)
    digests = []
    for seed in (1, 1, 2):
        report = make(local, path, seed=seed, overwrite=True)
        assert report.manifest is not None
        digests.append(report.manifest.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_weight_says_how_often_a_record_is_seen(local: Bucket, corpus: Corpus) -> None:
    twice, half = corpus("a.jsonl", ask(1), ask(2)), corpus("b.jsonl", *(ask(n) for n in range(100, 300)))
    report = make(local, f"{twice}:2", f"{half}:0.5")
    texts = conversations(samples_of(local))
    assert [texts.count(f"Ubani {n}?\nU{n}.") for n in (1, 2)] == [2, 2]
    assert 70 <= report.conversations["train"] - 4 <= 130
    with pytest.raises(UsageError, match="weight of 0"):
        make(local, f"{twice}:0", overwrite=True)
    with pytest.raises(DataError, match="no file of instructions"):
        make(local, corpus("a.txt"), overwrite=True)


def test_what_is_too_long_is_cut_and_counted_or_dropped_and_counted(local: Bucket, corpus: Corpus) -> None:
    path = corpus("a.jsonl", ask(1), {"instruction": "Xoxa", "output": "a" * 200})
    report = make(local.child("cut"), path)
    assert (report.cut, report.dropped, report.conversations["train"]) == (1, 0, 2)
    assert "a" * (64 - len("Xoxa\n") - 1) in learned(samples_of(local.child("cut")))
    report = make(local.child("drop"), path, too_long="drop")
    assert (report.cut, report.dropped, report.conversations["train"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"instruction": "Ubani?"}, r"a.jsonl:2: no 'output' \(there is 'instruction'\)"),
        ({"instruction": "b" * 99, "output": "a"}, "a.jsonl:2: the prompt alone has 101 tokens, more than a context"),
        ("{", "a.jsonl:2: not JSON"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(local: Bucket, corpus: Corpus, line: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        make(local, corpus("a.jsonl", ask(1), line))
    assert caught.value.hint
    assert not local.exists("manifest.json")


def test_a_repeated_record_is_taken_once(local: Bucket, corpus: Corpus) -> None:
    report = make(local, corpus("a.jsonl", ask(1), ask(1)))
    assert (report.records, report.duplicates, report.conversations["train"]) == (2, 1, 1)


def record(question: str, answer: str, **more: Any) -> InstructionRecord:
    return InstructionRecord(
        (Message("user", question, more.pop("input", "")), Message("assistant", answer)), "f:1", "s", **more
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (record("Ubani lo?", "a"), record("ubani  lo", "b")),
        (record("Humushela esiNgisini.", "the dog eats in the house", input="inja idla endlini yami"),
         record("Humushela esiZulwini.", "inja idla endlini yami", input="The dog eats in the house.")),
        (record("Zingaki?", "Zimbili.", pair="7"), record("How many?", "Two.", pair="7")),
    ],
)  # fmt: skip
def test_what_asks_the_same_is_never_on_both_sides(one: InstructionRecord, other: InstructionRecord) -> None:
    rest = [record(f"Umbuzo {n}?", f"Impendulo {n}") for n in range(400)]
    sides = []
    for share in np.linspace(0.05, 0.5, 10):
        held = instruction_mix.held_out([one, *rest, other], float(share))
        assert held[0] == held[-1]
        sides.append(sum(held) / len(held))
    assert sides == pytest.approx(np.linspace(0.05, 0.5, 10).tolist(), abs=0.08)


def test_a_short_answer_that_many_share_joins_nothing() -> None:
    held = instruction_mix.held_out([record(f"Yiqiniso {n}?", "Yebo.") for n in range(400)], 0.25)
    assert 60 < sum(held) < 140


def test_few_large_groups_are_trained_on() -> None:
    same = [record(f"Umbuzo {n}?", "anginalo ulwazi olwanele ngalokho") for n in range(400)]
    assert sum(instruction_mix.held_out([*same, *(record(f"Okunye {n}?", "a") for n in range(50))], 0.2)) < 50


def test_the_bilingual_mix_asks_in_isizulu_and_answers_in_english() -> None:
    records = [
        record("Zingaki?", "Zimbili.", pair="7", lang_in="zul", lang_out="zul"),
        record("How many?", "Two.", pair="7", lang_in="eng", lang_out="eng"),
        record("Lisho ukuthini?", "dog", lang_in="zul", lang_out="eng"),
        record("Alone?", "Yes.", lang_in="eng", lang_out="eng"),
    ]
    turns = [[message.content for message in each.messages] for each in instruction_mix.apply_mix(records, "bilingual")]
    assert turns == [["Zingaki?", "Two."], ["Lisho ukuthini?", "dog"]]
    assert instruction_mix.apply_mix(records, "zulu") == records[:1]
    assert instruction_mix.apply_mix(records, "all") == records
    with pytest.raises(UsageError, match="did you mean 'bilingual'"):
        instruction_mix.apply_mix(records, "bilingal")
    with pytest.raises(DataError, match="no record is asked in zul and answered in zul"):
        instruction_mix.apply_mix(records[3:], "zulu")


@given(st.lists(st.integers(1, 50), max_size=300))
def test_every_conversation_is_packed_once_and_no_sample_is_overfull(lengths: list[int]) -> None:
    bins = list(packing.pack(((number, length) for number, length in enumerate(lengths)), 50))
    assert sorted(number for each in bins for number in each.items) == list(range(len(lengths)))
    for each in bins:
        assert each.room == 50 - sum(lengths[number] for number in each.items) >= 0


def test_the_starter_instructions_make_a_dataset_in_every_style_and_mix(local: Bucket) -> None:
    for style in prompts.STYLES:
        for mix in ("all", "bilingual", "zulu"):
            place = local.child(f"{style}-{mix}")
            report = make(place, "starter", style=style, mix=mix, context=512, validation=0.1)
            assert report.samples["train"] >= 1
    assert report.conversations["train"] + report.conversations["validation"] >= 16


def test_the_shared_instructions_are_split_without_leaks(local: Bucket) -> None:
    path = GEMMA.parent / "zulu" / "instructions" / "instructions.jsonl.gz"
    require_shared(path)
    report = make(local, path, style="alpaca", context=1024, too_long="drop", validation=0.05)
    assert report.records == 9877
    held, trained = (conversations(samples_of(local, split)) for split in ("validation", "train"))
    assert 200 < len(held) < 800

    def questions(texts: list[str]) -> set[str]:
        return {instruction_mix.normalized(text.split("### Response:")[0]) for text in texts}

    assert not questions(held) & questions(trained)
    sources = [line for line in map(json.loads, _lines(path)) if line["task"].startswith("translate")]
    sides = {line["input"]: line["output"] for line in sources}
    together = "\n".join(trained)
    both = [text for text in held if (asked := _input(text)) in sides and f"Input:\n{sides[asked]}\n" in together]
    assert both == []


def _input(text: str) -> str:
    return text.split("### Input:\n")[-1].split("\n\n### Response")[0]


def _lines(path: Path) -> list[str]:
    import gzip

    return gzip.decompress(path.read_bytes()).decode().splitlines()
