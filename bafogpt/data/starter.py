"""The starter corpus: enough real isiZulu to try every command, too little to train a model.

The texts in ``starter/`` were written for the project (CC0-1.0). If Babel is installed, the isiZulu names of countries,
languages, currencies, months, days and units in Unicode's CLDR are added as dictionary entries; they are read from that
package at run time and not copied into the project.
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
"""Prefixes of isiZulu names of units; the others are symbols (``km``) or English."""


def files() -> list[TextFile]:
    """The shipped texts, and the names in CLDR if Babel is installed."""
    about = {"stage": "dictionary", "source": CLDR_SOURCE, "lang": "eng-zul"}
    return _with_cldr("starter", CLDR_NAME, ({"text": text, **about} for text in cldr_entries()))


def instructions() -> list[TextFile]:
    """Questions and answers in isiZulu and English, and the meaning of CLDR's names if Babel is installed."""
    return _with_cldr("starter/instructions", "starter/instructions/cldr.jsonl", cldr_instructions())


def _with_cldr(folder: str, name: str, records: Iterator[dict[str, str]]) -> list[TextFile]:
    paths = sorted((FOLDER.parent / folder).glob("*.jsonl"))
    shipped = [on_disk(path, f"{folder}/{path.name}") for path in paths]
    if importlib.util.find_spec("babel") is None:
        return shipped
    lines = (json.dumps(each, ensure_ascii=False) for each in records)
    return [*shipped, in_memory(name, "\n".join(lines).encode())]


def cldr_instructions() -> Iterator[dict[str, str]]:
    """For each name in CLDR a question about its translation, in both directions."""
    for entry in cldr_entries():
        zulu, english = (side.partition(": ")[2] for side in entry.split(" — ", 1))
        for source, target, question, answer in (
            ("zul", "eng", f'Lisho ukuthini igama elithi "{zulu}" ngesiNgisi?', english),
            ("eng", "zul", f'What is "{english}" called in isiZulu?', zulu),
        ):
            languages = {"lang_in": source, "lang_out": target}
            yield {"instruction": question, "output": answer, **languages, "pair": entry, "source": CLDR_SOURCE}


def cldr_entries() -> Iterator[str]:
    """Entries like ``"Izwe: iNingizimu Afrika — Country or region: South Africa"``, in a fixed order."""
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
    """One entry for each name that differs between the languages: CLDR leaves some in English."""
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
