"""Finds the merges that would change text of a protected language.

The extended tokenizer tokenizes as the base does and then applies the new merges, so a text changes exactly when a new
merge joins two neighbouring base tokens in it. Forbidding those pairs keeps the text unchanged. Protecting every word
of an English text costs too much, because English texts contain isiZulu names: a word is protected only if it is more
frequent in the protected text than in the corpus. Its variants with and without a space, capitalised or not, are
protected too.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bafogpt.data.vocabulary.bpe_merges import Pair
from bafogpt.data.vocabulary.word_counts import units

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


def protected_words(protect: Mapping[str, int], corpus: Mapping[str, int]) -> list[str]:
    """The words that are more frequent in ``protect`` than in ``corpus``, ignoring case."""
    ours, theirs = _folded(protect), _folded(corpus)
    our_total, their_total = sum(ours.values()), sum(theirs.values()) or 1
    return [word for word in protect if ours[key := _key(word)] / our_total > theirs[key] / their_total]


def variants(word: str) -> set[str]:
    """The word with and without a space before it, as it is, in lower case and capitalised."""
    bare = word.strip()
    spellings = (bare, bare.lower(), bare[:1].upper() + bare[1:])
    return {f"{space}{each}" for each in spellings for space in ("", " ")}


def forbidden_pairs(engine: FastTokenizer, words: Sequence[str], letters: Sequence[bool]) -> set[Pair]:
    """The pairs of neighbouring base tokens in ``words`` and their variants."""
    spelled = sorted({each for word in words for each in variants(word)})
    found = units(engine, ((word, 1) for word in spelled), letters)
    return {pair for unit in found for pair in itertools.pairwise(unit)}


def _folded(words: Mapping[str, int]) -> Counter[str]:
    folded: Counter[str] = Counter()
    for word, number in words.items():
        folded[_key(word)] += number
    return folded


def _key(word: str) -> str:
    return word.strip().lower()
