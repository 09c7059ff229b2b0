"""Which merges would touch the text of a language that must stay as it is.

The continued tokenizer first cuts as the base does and then applies the new merges, so it changes a text exactly when a
new merge joins two base tokens that are neighbours in it. Forbid those pairs, and the text cannot change, whatever else
is learned. To protect every word of an English text costs too much, because English texts hold isiZulu names: so a word
is protected only as far as the protected side uses it more, word for word, than the corpus does. Those that are, are
protected with and without a space before them, in lower case and with a capital: the text protects its like.
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
    """The words of ``protect`` that are a larger share of it than they are of ``corpus``, capitals not counted."""
    ours, theirs = _folded(protect), _folded(corpus)
    our_total, their_total = sum(ours.values()), sum(theirs.values()) or 1
    return [word for word in protect if ours[key := _key(word)] / our_total > theirs[key] / their_total]


def variants(word: str) -> set[str]:
    """The same word at the beginning of a line and within it, in the middle of a sentence and at its beginning."""
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
