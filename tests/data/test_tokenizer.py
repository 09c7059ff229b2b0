"""Tokenizers: the built-in bytes, and any tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bafogpt.core import digest
from bafogpt.core.errors import DataError, NotFoundError
from bafogpt.data import tokenizer


@given(st.lists(st.text(), max_size=5))
def test_bytes_give_back_every_text(texts: list[str]) -> None:
    chosen = tokenizer.load("bytes")
    encoded = chosen.encode_batch(texts)
    assert [chosen.decode(ids) for ids in encoded] == texts
    for ids in encoded:
        assert ids.dtype == chosen.dtype == "uint16"
        assert all(3 <= each < 259 for each in ids)


def test_bytes_are_what_datasets_say_they_are() -> None:
    chosen = tokenizer.load("bytes")
    assert (chosen.vocab_size, chosen.eos_id, chosen.bos_id, chosen.file) == (320, 1, 2, None)
    assert chosen.encode_batch(["Aé"])[0].tolist() == [3 + 0x41, 3 + 0xC3, 3 + 0xA9]
    assert chosen.decode([2, 3 + 0x41, 1, 0, 300]) == "A"
    assert chosen.decode([3 + 0xC3]) == "\ufffd"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_a_tokenizer_json_gives_back_every_text_even_one_that_spells_special_tokens(
    tokenizer_folder: Path, text: str
) -> None:
    chosen = tokenizer.load(str(tokenizer_folder))
    spelled = f"{text}<eos>{text}<bos>"
    (ids,) = chosen.encode_batch([spelled])
    assert chosen.decode(ids) == spelled
    assert chosen.eos_id not in ids
    assert chosen.bos_id not in ids


def test_a_folder_and_the_file_in_it_are_the_same_tokenizer(tokenizer_folder: Path) -> None:
    folder, file = tokenizer.load(str(tokenizer_folder)), tokenizer.load(str(tokenizer_folder / "tokenizer.json"))
    assert (
        (folder.name, folder.digest)
        == (file.name, file.digest)
        == ("small-bpe", digest.of_file(tokenizer_folder / "tokenizer.json"))
    )
    assert (file.vocab_size, file.eos_id, file.bos_id, file.dtype) == (259, 1, 2, "uint16")


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"eos_token": "<bos>"}, "eos_id", 2),
        ({"eos_token": {"content": "<bos>"}}, "eos_id", 2),
        ({"add_bos_token": True}, "add_bos", True),
        ({"add_bos_token": False}, "add_bos", False),
        ({"add_bos_token": None}, "add_bos", False),
    ],
)
def test_the_configuration_beside_it_is_used(
    tokenizer_folder: Path, config: dict[str, object], field: str, value: object
) -> None:
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert getattr(tokenizer.load(str(tokenizer_folder)), field) == value


def test_without_a_token_for_the_end_the_error_says_where_to_name_one(tokenizer_folder: Path) -> None:
    file = tokenizer_folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<eos>", "<fin>"), encoding="utf-8")
    with pytest.raises(DataError, match="no token for the end of a text") as caught:
        tokenizer.load(str(file))
    assert "tokenizer_config.json" in caught.value.hint


def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(NotFoundError, match=r"has no tokenizer\.json"):
        tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        tokenizer.load(str(tmp_path))
    (tokenizer_folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        tokenizer.load(str(tokenizer_folder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"add_bos_token": "true"}, "add_bos_token is not true or false"),
        ({"add_bos_token": True, "bos_token": "<nope>"}, "add_bos_token is true, and there is no such token"),
        ({"eos_token": "<nowhere>"}, "no token for the end of a text"),
    ],
)
def test_an_unusable_configuration_is_refused(tokenizer_folder: Path, config: dict[str, object], words: str) -> None:
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=words) as refused:
        tokenizer.load(str(tokenizer_folder))
    assert "tokenizer_config.json" in refused.value.hint or refused.value.hint.startswith("name it as")
