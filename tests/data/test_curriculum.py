"""The order of documents: stages, replay, and what is held out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.core.errors import DataError
from bafogpt.data import curriculum

Item = tuple[str, int]  # a name, and a size in tokens


def ordered(stages: list[tuple[str, list[Item]]], replay: list[Item], ratio: float) -> list[tuple[str, Item, bool]]:
    return list(curriculum.training_order(stages, replay, ratio, lambda item: item[1]))


def items(prefix: str, sizes: list[int]) -> list[Item]:
    return [(f"{prefix}{number}", tokens) for number, tokens in enumerate(sizes)]


sizes = st.lists(st.integers(1, 50), max_size=40)


@given(sizes, sizes, sizes, st.floats(0, 2))
def test_order_keeps_every_document_in_its_place(
    first: list[int], second: list[int], third: list[int], ratio: float
) -> None:
    stages = [("news", items("n", first)), ("poem", items("p", second))]
    replay = items("r", third)
    stream = ordered(stages, replay, ratio)
    assert [(stage, item) for stage, item, is_replay in stream if not is_replay] == [
        (stage, item) for stage, documents in stages for item in documents
    ]
    mixed = [item for _, item, is_replay in stream if is_replay]
    assert mixed == replay[: len(mixed)]
    named = [stage for stage, _, _ in stream]
    assert named == sorted(named, key=["news", "poem"].index), "a stage is one span"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=200), st.floats(0.01, 1))
def test_replay_is_as_near_to_its_ratio_as_whole_documents_allow_at_every_point(main: list[int], ratio: float) -> None:
    replay = items("r", [5] * 2000)
    passed = mixed = 0
    stream = ordered([("web", items("w", main))], replay, ratio)
    for (_, item, is_replay), following in zip(stream, [*stream[1:], None], strict=True):
        if is_replay:
            mixed += item[1]
        else:
            passed += item[1]
        if following is None or not following[2]:  # all the replay due here has come
            assert abs(mixed - passed * ratio) <= 2.5


def test_a_share_becomes_a_ratio() -> None:
    assert curriculum.replay_ratio(0.05, 950, 1000) == pytest.approx(50 / 950)
    assert curriculum.replay_ratio(0.05, 0, 10) == 0.0
    assert not any(is_replay for *_, is_replay in ordered([("web", items("w", [5] * 9))], items("r", [1] * 9), 0.0))


def test_too_little_replay_is_spread_over_the_whole_stream() -> None:
    main, replay = items("w", [10] * 100), items("r", [10] * 4)
    ratio = curriculum.replay_ratio(0.2, 1000, 40)
    stream = ordered([("web", main)], replay, ratio)
    places = [place for place, (*_, is_replay) in enumerate(stream) if is_replay]
    assert len(places) == 4, "all of it is used"
    assert places == pytest.approx([13, 39, 65, 91], abs=2)


@given(st.text(max_size=50), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_fraction_holds_out_the_same_documents_and_more(text: str, one: float, other: float) -> None:
    key = curriculum.document_key(text)
    assert curriculum.held_out(key, min(one, other)) <= curriculum.held_out(key, max(one, other))


def test_the_fraction_held_out_is_the_one_asked_for() -> None:
    held = sum(curriculum.held_out(curriculum.document_key(f"umbhalo {number}"), 0.1) for number in range(10_000))
    assert 900 < held < 1100  # over 3 standard deviations


def test_nothing_and_not_everything_is_held_out_at_the_ends() -> None:
    assert not curriculum.held_out(b"\0" * curriculum.KEY_BYTES, 0.0)
    assert not curriculum.held_out(b"\xff" * curriculum.KEY_BYTES, 0.5)


def test_white_space_around_a_text_does_not_change_its_key() -> None:
    keys = [curriculum.document_key(text) for text in (" Sawubona\n", "Sawubona", "sawubona")]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == curriculum.KEY_BYTES


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(DataError, match=r"x: unknown stage 'dictionery' \(did you mean 'dictionary'\?\)"):
        curriculum.require_stage("dictionery", "x")
