"""Which questions meet which answers, and which of them are held out.

Records that carry the same ``pair`` are one thing in several languages. A mix says in which languages questions are
asked and answered; where a record asks and answers in one language, its pair's question and answer can be crossed.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bafogpt.core.errors import DataError, UsageError, did_you_mean
from bafogpt.data import curriculum
from bafogpt.data.messages import Message

MIXES: dict[str, tuple[tuple[str, str], ...]] = {"all": (), "bilingual": (("zul", "eng"),), "zulu": (("zul", "zul"),)}
"""(language of the question, of the answer) of each mix; ``all`` takes records as they are written. ``bilingual`` is
that of the isiZulu instruction model: asked in isiZulu, answered in English."""

MIN_IDENTIFYING_WORDS = 4
"""A question, an input or an answer of this many words makes two records the same one; shorter ones (``yes``, the
name of an intent) are shared by records that have nothing in common."""


@dataclass(frozen=True)
class InstructionRecord:
    """One line of an instruction file."""

    messages: tuple[Message, ...]
    where: str
    """``FILE:LINE``, for messages."""
    source: str
    pair: str = ""
    lang_in: str = ""
    lang_out: str = ""
    weight: float = 1.0
    """How many times it is seen in an epoch; a fraction is the share of records that are."""

    @property
    def key(self) -> bytes:
        """16 bytes of the hash of the whole conversation."""
        return curriculum.document_key(
            "\0".join(f"{each.role}\0{each.content}\0{each.input}" for each in self.messages)
        )


def apply_mix(records: Sequence[InstructionRecord], mix: str) -> list[InstructionRecord]:
    """The records of a mix, in the order of the files; crossed ones stand where the question stands.

    Raises :class:`UsageError` for an unknown mix and :class:`DataError` when nothing is left.
    """
    if mix not in MIXES:
        raise UsageError(f"no mix '{mix}'{did_you_mean(mix, MIXES)}", f"--mix is one of {', '.join(MIXES)}")
    if not MIXES[mix]:
        return list(records)
    answers = {(each.pair, each.lang_out): each for each in records if each.pair and _is_whole(each)}
    found = []
    for record in records:
        for asked, answered in MIXES[mix]:
            other = answers.get((record.pair, answered))
            if (record.lang_in, record.lang_out) == (asked, answered):
                found.append(record)
            elif other and _is_whole(record) and record.lang_in == asked:
                crossed = (*record.messages[:-1], other.messages[-1])
                found.append(dataclasses.replace(record, messages=crossed, lang_out=answered))
    if not found:
        wanted = " or ".join(f"asked in {asked} and answered in {answered}" for asked, answered in MIXES[mix])
        raise DataError(f"mix {mix}: no record is {wanted}", "give records lang_in, lang_out and pair, or --mix all")
    return found


def held_out(records: Sequence[InstructionRecord], share: float) -> list[bool]:
    """For each record whether it is for validation: some ``share`` of them, chosen by what they say.

    Records of one group are on one side: those of one ``pair``, those that ask the same (whatever its case,
    punctuation and spacing), and those of which one's question is the other's answer, as in translations both ways.
    A group with more than a tenth of what is wanted for validation is trained on.
    """
    groups = _groups(records)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    keys = {group: min(records[index].key for index in of) for group, of in members.items()}
    most = max(1.0, share * len(records) / 10)
    small = [group for group in members if len(members[group]) <= most or len(members[group]) == 1]
    chosen = {group for group in small if curriculum.held_out(keys[group], share)}
    if share and small and not chosen and len(members) >= curriculum.SMALLEST_HELD_OUT:
        chosen = {min(small, key=lambda group: keys[group])}
    return [group in chosen for group in groups]


def normalized(text: str) -> str:
    """Letters and digits, lower case, one space between words: what makes two questions the same."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _groups(records: Sequence[InstructionRecord]) -> list[int]:
    """The number of each record's group."""
    parents = list(range(len(records)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[str, int] = {}
    for index, record in enumerate(records):
        for mark in _marks(record):
            parents[root(index)] = root(first.setdefault(mark, index))
    return [root(index) for index in range(len(records))]


def _marks(record: InstructionRecord) -> Iterable[str]:
    """What a record shares with those of its group."""
    if record.pair:
        yield f"pair {record.pair}"
    asked = [message for message in record.messages if message.role == "user"]
    yield "asked " + normalized(" ".join(f"{each.content} {each.input}" for each in asked))
    for text in (asked[0].input, asked[0].content, record.messages[-1].content):
        words = normalized(text)
        if words.count(" ") + 1 >= MIN_IDENTIFYING_WORDS and not (text is asked[0].content and asked[0].input):
            yield f"text {words}"


def _is_whole(record: InstructionRecord) -> bool:
    """Whether it asks and answers once, in one language."""
    return bool(record.lang_in) and record.lang_in == record.lang_out and len(record.messages) == 2
