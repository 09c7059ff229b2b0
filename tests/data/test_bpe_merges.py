"""Byte-pair merges: the incremental index against the definition, and words as they are counted."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.core.process import wait_until
from bafogpt.data.documents import in_memory
from bafogpt.data.vocabulary import protected_merges, word_counts
from bafogpt.data.vocabulary.bpe_merges import PairIndex, apply, merged

UNITS = st.dictionaries(st.lists(st.integers(0, 4), min_size=2, max_size=9).map(tuple), st.integers(1, 9), max_size=20)


def by_definition(units: dict[tuple[int, ...], int], steps: int) -> list[tuple[tuple[int, int], int]]:
    """Count all pairs anew before each merge; the most frequent goes first, of equal ones the lowest."""
    cut = [(list(unit), number) for unit, number in units.items()]
    learned = []
    for token in range(100, 100 + steps):
        counts: Counter[tuple[int, int]] = Counter()
        for unit, number in cut:
            for pair in itertools.pairwise(unit):
                counts[pair] += number
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append((best, counts[best]))
        cut = [(merged(unit, best, token), number) for unit, number in cut]
    return learned


@given(UNITS)
def test_the_index_learns_the_merges_that_counting_anew_would(units: dict[tuple[int, ...], int]) -> None:
    index = PairIndex(units)
    learned = []
    for token in range(100, 112):
        best = index.most_frequent()
        if best is None:
            break
        learned.append(best)
        index.merge(best[0], token)
    assert learned == by_definition(units, 12)


@given(UNITS, st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6))
def test_a_forbidden_pair_is_never_offered(units: dict[tuple[int, ...], int], forbidden: set[tuple[int, int]]) -> None:
    index = PairIndex(units, forbidden)
    seen = set()
    token = 100
    while (best := index.most_frequent()) is not None:
        seen.add(best[0])
        if len(seen) % 2:
            index.forbid(best[0])
        else:
            index.merge(best[0], token)
            token += 1
    assert not seen & forbidden


def test_a_run_of_one_token_is_merged_from_the_left() -> None:
    assert merged([1, 1, 1, 2, 1, 1], (1, 1), 9) == [9, 1, 2, 9]
    assert apply([1, 1, 1, 1, 2], {(1, 1): 9, (9, 9): 10, (10, 2): 11}) == [11]
    assert apply([1, 2, 3], {(2, 3): 9, (1, 2): 10}) == [1, 9], "the merge that was learned first goes first"
    assert apply([5], {}) == [5]


def test_words_keep_the_one_space_before_them() -> None:
    file = in_memory("web.txt", b"Sawubona  wena,\n ngi-ya  bonga\tka")
    assert [word_counts._WORD.findall(text) for text in word_counts.texts(file, "zul", replay=False)] == [
        ["Sawubona", "wena,", "ngi-ya", "bonga", "ka"]
    ]
    file = in_memory("web.txt", b"a b c")
    assert [word_counts._WORD.findall(text) for text in word_counts.texts(file, "zul", replay=False)] == [
        ["a", " b", " c"]
    ]


def test_letters_are_letters_of_any_script_after_one_space_at_most() -> None:
    assert all(word_counts.is_letters(piece) for piece in ("a", "▁", "▁ngi", "Éa", "é", "जन"))
    assert not any(word_counts.is_letters(piece) for piece in ("1", "a1", "▁▁", "a▁", "-", "<0x41>", "\n", "a'"))


RECORDS = (
    {"text": "English: yes\nisiZulu: yebo", "lang": "eng-zul", "eng": "yes", "zul": "yebo"},
    {"text": "manje", "lang": "zul"},
    {"text": "now", "lang": "eng"},
    {"text": "umuntu (noun): person", "lang": "eng-zul"},
    {"text": "kusasa"},
    {"text": "later", "stage": "replay"},
    {"text": "soon", "stage": "replay", "lang": "eng"},
)


@pytest.mark.parametrize(
    ("language", "replay", "wanted"),
    [
        ("zul", False, ["yebo", "manje", "kusasa"]),
        ("eng", True, ["yes", "now", "kusasa", "later", "soon"]),
        ("eng", False, ["yes", "now", "kusasa", "soon"]),
        ("fra", False, ["kusasa"]),
    ],
)
def test_a_language_is_its_side_of_parallel_text_and_what_names_no_other(
    language: str, replay: bool, wanted: list[str]
) -> None:
    file = in_memory("web.jsonl", "\n".join(json.dumps(record) for record in RECORDS).encode())
    assert list(word_counts.texts(file, language, replay=replay)) == wanted


def test_counting_in_processes_gives_what_counting_in_one_gives(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"web_{number}.txt").write_text(f"izwi {number} izwi elilodwa " * 50, encoding="utf-8")
    alone = word_counts.count([str(tmp_path)], "zul", replay=False, processes=1)
    together = word_counts.count([str(tmp_path)], "zul", replay=False, processes=2)
    assert (alone.counts, alone.documents, alone.digests) == (together.counts, together.documents, together.digests)
    assert list(alone.counts) == list(together.counts)
    assert alone.counts[" izwi"] == 3 * 99
    assert alone.documents == len(alone.digests) == 3


KILLED = """
import os, time
from bafogpt.data.vocabulary import word_counts
if __name__ == "__main__":
    pool = word_counts.pool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_nothing_is_left_when_it_is_killed_while_counting(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(KILLED)
    with subprocess.Popen([sys.executable, tmp_path / "count.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.stdout.close()
        assert wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 30)


def test_a_word_is_protected_as_far_as_the_protected_side_uses_it_more() -> None:
    english = {" the": 90, " Zuma": 2, " Dlamini": 1, " river": 7}
    zulu = {" UZuma": 5, " Zuma": 40, " Dlamini,": 3, " Dlamini": 50, " the": 2, " umfula": 100}
    assert protected_merges.protected_words(english, zulu) == [" the", " river"]
    assert protected_merges.protected_words(english, {}) == list(english)
    assert protected_merges.variants(" river") == {"river", " river", "River", " River"}
    assert protected_merges.variants("NATO") == {"NATO", " NATO", "nato", " nato"}
