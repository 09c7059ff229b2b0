"""Which tokens follow a prompt, and the text they make."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.core.errors import UsageError
from bafogpt.data.tokenizer import ByteTokenizer
from bafogpt.model import generate as generating
from bafogpt.model.generate import Sampling, TextStream, choose, generate

from .small_models import as_gemma, small, text

GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("length", [3, 40])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_greedy_answers_are_those_of_transformers_for_200_tokens_past_the_window(
    tied: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "PREFILL_CHUNK", 24)
    ours = small(seed=4, tied=tied).eval()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if "post" in name:
                weight += 3  # or the same token comes over and over
    theirs = as_gemma(ours)
    prompt = text(1, length)
    with torch.no_grad():
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False, pad_token_id=0
        )
    found = list(generate(ours, prompt[0].tolist(), max_tokens=200, sampling=GREEDY))
    assert len(found) == 200
    assert found == expected[0, length:].tolist()
    assert len(set(found)) > 10


def test_a_stop_token_is_the_last_one() -> None:
    model = small().eval()
    free = list(generate(model, [5, 6], max_tokens=30, sampling=Sampling(seed=1)))
    stop = free[7]
    stopped = list(generate(model, [5, 6], max_tokens=30, sampling=Sampling(seed=1), stops={stop}))
    assert stopped == free[: free.index(stop) + 1]


def test_a_seed_repeats_the_choices_and_another_one_does_not() -> None:
    model = small().eval()
    one, same, other = (
        list(generate(model, [5, 6], max_tokens=30, sampling=Sampling(seed=seed))) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_padding_rows_of_the_vocabulary_are_never_chosen() -> None:
    model = small().eval()
    with torch.no_grad():
        model.lm_head.weight[300:] *= 40
    free = list(generate(model, [5], max_tokens=40, sampling=Sampling(seed=1)))
    bound = list(generate(model, [5], max_tokens=40, sampling=Sampling(seed=1), vocabulary=300))
    assert max(free) >= 300 > max(bound)


def drawn(sampling: Sampling, logits: list[float], times: int = 4000) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    counts = collections.Counter(choose(torch.tensor(logits), sampling, generator) for _ in range(times))
    return {token: count / times for token, count in sorted(counts.items())}


LOGITS = torch.tensor([0.1, 0.5, 0.3, 0.06, 0.04]).log().tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.06, 4: 0.04}),
        (Sampling(temperature=0), {1: 1.0}),
        (Sampling(temperature=0.5), {0: 0.028, 1: 0.704, 2: 0.253, 3: 0.01, 4: 0.0045}),
        (Sampling(top_k=2), {1: 0.625, 2: 0.375}),
        (Sampling(top_k=9), {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.06, 4: 0.04}),
        (Sampling(top_p=0.5), {1: 1.0}),
        (Sampling(top_p=0.81), {0: 0.111, 1: 0.556, 2: 0.333}),
        (Sampling(top_k=3, top_p=0.6), {1: 0.625, 2: 0.375}),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(sampling: Sampling, expected: dict[int, float]) -> None:
    found = drawn(sampling, LOGITS)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"seed": 2**64}], ids=str
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_into_the_positions_is_refused_before_the_first_token() -> None:
    model = small()
    with pytest.raises(UsageError, match="a prompt of 500 tokens and an answer of 13 do not fit") as caught:
        generate(model, [1] * 500, max_tokens=13, sampling=GREEDY)
    assert caught.value.hint == "ask for 1 to 12 tokens"
    with pytest.raises(UsageError, match="do not fit"):
        generate(model, [1] * 512, max_tokens=1, sampling=GREEDY)
    with pytest.raises(UsageError, match="no tokens"):
        generate(model, [], max_tokens=1, sampling=GREEDY)


WORDS = ByteTokenizer()


def streamed(what: str, stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The pieces that the bytes of a text come out in, one byte a token."""
    stream = TextStream(WORDS.decode, stop)
    pieces = []
    for token in WORDS.encode_batch([what])[0]:
        pieces.append(stream.push(int(token)))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_text_comes_out_whole_and_never_half_a_character(what: str) -> None:
    pieces, _ = streamed(what)
    assert "".join(pieces) == what
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_stays_torn_is_shown_as_such_at_the_end() -> None:
    stream = TextStream(WORDS.decode)
    tokens = [int(each) for each in WORDS.encode_batch(["a€"])[0][:-1]]
    assert [stream.push(token) for token in tokens] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


@given(st.text("ab€", max_size=12), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_text_before_it_and_none_of_it_gets_out(what: str, stop: list[str]) -> None:
    pieces, stopped = streamed(what, stop)
    said = "".join(pieces)
    assert what.startswith(said)
    assert not any(each in said for each in stop)
    assert stopped == any(each in what for each in stop)
    if not stopped:
        assert said == what
