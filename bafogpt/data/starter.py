"""The corpus that ships with the project: enough real isiZulu to try everything, too little to train a model on.

The texts in ``starter/`` were written for the project (CC0-1.0). Where Babel is installed, the isiZulu names of
countries, languages, currencies, months, days and units in Unicode's CLDR join them as dictionary entries; they come
from that installed package at run time and are not copied into the project.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from bafogpt.data.documents import TextFile, in_memory, on_disk

FOLDER = Path(__file__).parent / "starter"
CLDR_NAME = "starter/dictionary_cldr.jsonl"
CLDR_SOURCE = "Unicode CLDR"
PLURALS = ("ama", "izi", "imi")
"""How isiZulu names of units begin; the others are symbols (``km``) or left in English."""


def files() -> list[TextFile]:
    """The shipped files, and the names in CLDR where Babel is installed."""
    shipped = [on_disk(path, f"starter/{path.name}") for path in sorted(FOLDER.glob("*.jsonl"))]
    if importlib.util.find_spec("babel") is None:
        return shipped
    entries = (json.dumps(_record(text), ensure_ascii=False) for text in cldr_entries())
    return [*shipped, in_memory(CLDR_NAME, "\n".join(entries).encode())]


def instructions() -> list[TextFile]:
    """Questions and answers in isiZulu and English, and what CLDR's names mean, where Babel is installed."""
    folder = FOLDER / "instructions"
    shipped = [on_disk(path, f"starter/instructions/{path.name}") for path in sorted(folder.glob("*.jsonl"))]
    if importlib.util.find_spec("babel") is None:
        return shipped
    lines = (json.dumps(each, ensure_ascii=False) for each in cldr_instructions())
    return [*shipped, in_memory("starter/instructions/cldr.jsonl", "\n".join(lines).encode())]


def cldr_instructions() -> Iterator[dict[str, str]]:
    """For each name in CLDR what it means in the other language, asked in both."""
    for entry in cldr_entries():
        zulu, english = (side.partition(": ")[2] for side in entry.split(" — ", 1))
        for source, target, question, answer in (
            ("zul", "eng", f'Lisho ukuthini igama elithi "{zulu}" ngesiNgisi?', english),
            ("eng", "zul", f'What is "{english}" called in isiZulu?', zulu),
        ):
            languages = {"lang_in": source, "lang_out": target}
            yield {"instruction": question, "output": answer, **languages, "pair": entry, "source": CLDR_SOURCE}


def cldr_entries() -> Iterator[str]:
    """``"Izwe: iNingizimu Afrika — Country or region: South Africa"`` and the like, in a fixed order."""
    from babel import Locale

    zulu, english = Locale("zu"), Locale("en")
    yield from _pairs("Izwe", "Country or region", zulu.territories, english.territories)
    yield from _pairs("Ulimi", "Language", zulu.languages, english.languages)
    yield from _pairs("Imali", "Currency", zulu.currencies, english.currencies)
    yield from _pairs("Inyanga", "Month", _wide(zulu.months), _wide(english.months))
    yield from _pairs("Usuku", "Day", _wide(zulu.days), _wide(english.days))
    units = {code: name for code, name in _units(zulu).items() if name.startswith(PLURALS)}
    yield from _pairs("Isilinganiso", "Unit", units, _units(english))


def _pairs(zulu_kind: str, english_kind: str, zulu: Mapping[Any, str], english: Mapping[Any, str]) -> Iterator[str]:
    """One entry for each name that both languages have and that differs: CLDR leaves some in English."""
    for code in sorted(zulu):
        if code in english and zulu[code] != english[code]:
            yield f"{zulu_kind}: {zulu[code]} — {english_kind}: {english[code]}"


def _wide(names: Any) -> Mapping[int, str]:
    """The full names in a Babel calendar table."""
    return dict(names["format"]["wide"])


def _units(locale: Any) -> dict[str, str]:
    """The names of units of measurement."""
    units = cast(Mapping[str, Mapping[str, str]], locale.unit_display_names)
    return {code: names.get("long") or names.get("short", "") for code, names in units.items()}


def _record(text: str) -> dict[str, str]:
    return {"text": text, "stage": "dictionary", "source": CLDR_SOURCE, "lang": "eng-zul"}
