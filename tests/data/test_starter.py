"""The corpus that ships with the project."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import pytest

from bafogpt.data import curriculum, sources, starter


def test_every_stage_has_text_and_every_record_its_fields() -> None:
    documents = list(sources.read_documents("starter"))
    assert {each.stage for each in documents} == set(curriculum.KNOWN)
    assert {each.lang for each in documents} == {"zul", "eng", "eng-zul"}
    assert {each.lang for each in documents if each.stage == "replay"} == {"eng"}
    assert all(each.source.startswith("starter ") or each.source == starter.CLDR_SOURCE for each in documents)


def test_no_text_is_there_twice() -> None:
    counts = Counter(each.text for each in sources.read_documents("starter"))
    assert [text for text, count in counts.items() if count > 1] == []


def test_the_shipped_texts_are_of_the_size_that_the_readme_gives() -> None:
    readme = (starter.FOLDER / "README.md").read_text(encoding="utf-8")
    for path in starter.FOLDER.glob("*.jsonl"):
        (file,) = sources.find(str(path))
        assert f"| `{path.name}` | {len(list(file.read()))} |" in readme


def test_names_of_cldr_join_it() -> None:
    entries = list(starter.cldr_entries())
    assert len(entries) > 500
    assert "Izwe: iNingizimu Afrika — Country or region: South Africa" in entries
    assert "Usuku: ULwesibili — Day: Tuesday" in entries
    assert "Isilinganiso: amaviki — Unit: weeks" in entries


def test_without_babel_the_shipped_texts_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def no_babel(name: str, *arguments: Any) -> Any:
        return None if name == "babel" else found(name, *arguments)

    names = [file.name for file in starter.files()]
    monkeypatch.setattr(importlib.util, "find_spec", no_babel)
    assert names == [*(file.name for file in starter.files()), starter.CLDR_NAME]
