"""Chooses the languages of questions and answers, and the records that are held out.

Records with the same ``pair`` are translations of each other. A mix names the languages of questions and answers; a
question in one language is combined with the answer of its translation in another.
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
"""(language of the question, of the answer) of each mix; ``all`` takes records as they are. The isiZulu instruction
model was trained on ``bilingual``: asked in isiZulu, answered in English."""

MIN_IDENTIFYING_WORDS = 4
"""Records that share a question, input or answer of at least this many words belong together; unrelated records share
shorter ones (``yes``, the name of an intent)."""


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
    """How often it is seen per epoch; a fraction is the share of records that are seen."""

    @property
    def key(self) -> bytes:
        """16 bytes of the hash of the whole conversation."""
        return curriculum.document_key(
            "\0".join(f"{each.role}\0{each.content}\0{each.input}" for each in self.messages)
        )


def apply_mix(records: Sequence[InstructionRecord], mix: str) -> list[InstructionRecord]:
    """The records of a mix, in the order of their questions in the files.

    Raises :class:`UsageError` for an unknown mix and :class:`DataError` when nothing is left.
    """
    if mix not in MIXES:
        raise UsageError(f"no mix '{mix}'{did_you_mean(mix, MIXES)}", f"--mix is one of {', '.join(MIXES)}")
    if not MIXES[mix]:
        return list(records)
    answers = {(each.pair, each.lang_out): each for each in records if each.pair and _is_simple(each)}
    found = []
    for record in records:
        for asked, answered in MIXES[mix]:
            other = answers.get((record.pair, answered))
            if (record.lang_in, record.lang_out) == (asked, answered):
                found.append(record)
            elif other and _is_simple(record) and record.lang_in == asked:
                crossed = (*record.messages[:-1], other.messages[-1])
                found.append(dataclasses.replace(record, messages=crossed, lang_out=answered))
    if not found:
        wanted = " or ".join(f"asked in {asked} and answered in {answered}" for asked, answered in MIXES[mix])
        raise DataError(f"mix {mix}: no record is {wanted}", "give records lang_in, lang_out and pair, or --mix all")
    return found


def held_out(records: Sequence[InstructionRecord], share: float) -> list[bool]:
    """For each record whether it is for validation: about ``share`` of them, chosen by a hash of their content.

    A group of related records is never split: those of one ``pair``, those with the same question (ignoring case,
    punctuation and spacing), and those where one's question is the other's answer, as in translations both ways.
    A group larger than a tenth of the validation split is trained on.
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
    """Letters and digits in lower case, one space between words."""
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
    """Strings of which records of one group share at least one."""
    if record.pair:
        yield f"pair {record.pair}"
    asked = [message for message in record.messages if message.role == "user"]
    yield "asked " + normalized(" ".join(f"{each.content} {each.input}" for each in asked))
    for text in (asked[0].input, asked[0].content, record.messages[-1].content):
        words = normalized(text)
        if words.count(" ") + 1 >= MIN_IDENTIFYING_WORDS and not (text is asked[0].content and asked[0].input):
            yield f"text {words}"


def _is_simple(record: InstructionRecord) -> bool:
    """Whether it is one question and one answer in the same language."""
    return bool(record.lang_in) and record.lang_in == record.lang_out and len(record.messages) == 2
