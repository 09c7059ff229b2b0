"""Files of text, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from bafogpt.core.errors import BafoError, DataError, NotFoundError
from bafogpt.data import documents, sources


def texts(source: Path | str, **arguments: Any) -> list[str]:
    return [document.text for document in sources.read_documents(str(source), **arguments)]


def failure(source: Path | str, **arguments: Any) -> BafoError:
    with pytest.raises(BafoError) as caught:
        texts(source, **arguments)
    error = caught.value
    assert "\n" not in error.message + error.hint
    assert error.hint
    return error


def test_a_record_says_where_it_belongs(corpus: Any) -> None:
    path = corpus("a.jsonl", {"text": "Sawubona", "stage": "poem", "source": "S", "lang": "zul", "id": 7})
    assert list(sources.read_documents(str(path))) == [
        documents.Document(text="Sawubona", stage="poem", source="S", lang="zul", where=f"{path}:1")
    ]


def test_stage_and_source_come_from_the_name_of_the_file_where_the_record_is_silent(corpus: Any) -> None:
    (document,) = sources.read_documents(str(corpus("news_umlazi.jsonl", {"text": "Izindaba"})))
    assert (document.stage, document.source) == ("news", "news_umlazi")


def test_an_asked_for_stage_beats_the_name_of_the_file_and_not_the_record(corpus: Any) -> None:
    path = corpus("news.jsonl", {"text": "a"}, {"text": "b", "stage": "poem"})
    assert [each.stage for each in sources.read_documents(str(path), stage="web")] == ["web", "poem"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compression_changes_neither_text_nor_digest(tmp_path: Path, suffix: str) -> None:
    plain = json.dumps({"text": "Ukukhanya — light"}).encode() + b"\n"
    path = tmp_path / f"web.jsonl{suffix}"
    path.write_bytes({"": plain, ".gz": gzip.compress(plain), ".zst": zstd.compress(plain)}[suffix])
    (file,) = sources.find(str(path))
    assert [each.text for each in file.read()] == ["Ukukhanya — light"]
    (uncompressed,) = [documents.in_memory("web.jsonl", plain)]
    list(uncompressed.read())
    assert file.digest == uncompressed.digest


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "poem_a.txt").write_text("Umugqa wokuqala\nUmugqa wesibili\n", encoding="utf-8")
    (tmp_path / "poem_b.md").write_text("\ufeff# Isihloko\n", encoding="utf-8")
    assert texts(tmp_path) == ["Umugqa wokuqala\nUmugqa wesibili\n", "# Isihloko\n"]


def test_a_folder_is_read_sorted_and_without_hidden_files_and_readmes(corpus: Any) -> None:
    for name in ("b/web.jsonl", "a/web.jsonl", "web.jsonl", ".hidden.jsonl", "README.md", "notes.pdf"):
        path = corpus(name, {"text": name})
    names = [file.name for file in sources.find(str(path.parent))]
    assert names == ["corpus/a/web.jsonl", "corpus/b/web.jsonl", "corpus/web.jsonl"]


def test_records_without_text_are_counted_and_left_out(corpus: Any) -> None:
    (file,) = sources.find(str(corpus("web.jsonl", {"text": "a"}, {"text": " \n\t"}, "", {"text": ""}, {"text": "b"})))
    assert [each.text for each in file.read()] == ["a", "b"]
    assert (file.documents, file.empty) == (2, 2)


@pytest.mark.parametrize(
    ("line", "problem", "hint"),
    [
        ('{"text": "b"', "not JSON", "edit"),
        ('["text"]', "a JSON list, not an object", "edit"),
        ({"content": "a", "id": 1}, "no 'text' (there is 'content', 'id')", "edit"),
        ({}, "no 'text' (there is nothing)", "edit"),
        ({"text": None}, "'text' is not a string", "edit"),
        ('{"text": "\\ud83d"}', "'text' holds half of a surrogate pair", "edit"),
        (
            {"text": "a", "stage": "translations"},
            "unknown stage 'translations' (did you mean 'translation'?)",
            "use one of dictionary, translation",
        ),
        ({"text": "a"}, "no 'stage', and the file's name does not begin with one", "add --stage NAME"),
    ],
)
def test_an_unusable_record_is_named_by_file_and_line(corpus: Any, line: Any, problem: str, hint: str) -> None:
    path = corpus("notes.jsonl", {"text": "a", "stage": "web"}, line)
    error = failure(path)
    assert error.message.startswith(f"{path}:2: {problem}")
    assert error.hint.startswith(hint)


@pytest.mark.parametrize("name", ["web.jsonl", "web.txt"])
def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert failure(path).message.startswith(f"{path}:2: not UTF-8")


def test_sources_without_text_are_refused(tmp_path: Path, bucket: Any, s3: Any) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.jsonl does not exist"):
        sources.find(str(tmp_path / "nowhere.jsonl"))
    for name in ("scan.pdf", "README.md"):
        (tmp_path / name).write_text("a")
    with pytest.raises(DataError, match=r"no file of text \(\.jsonl \.txt \.md"):
        sources.find(str(tmp_path))
    with pytest.raises(NotFoundError, match="/empty: nothing is there"):
        sources.find(f"{bucket.url}/empty", s3.settings)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("content", ["torn", "mislabelled"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"web.jsonl{suffix}"
    plain = b'{"text": "a"}\n' * 999
    whole = gzip.compress(plain) if suffix == ".gz" else zstd.compress(plain)
    path.write_bytes(whole[: len(whole) // 2] if content == "torn" else plain)
    assert failure(path).message.startswith(f"{path}: cannot be read")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = documents.on_disk(tmp_path / "gone.jsonl", "gone.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: No such file or directory"):
        list(file.read())


def test_objects_in_a_bucket_are_read_like_files(bucket: Any, s3: Any) -> None:
    bucket.put("text/web_b.jsonl.gz", gzip.compress(b'{"text": "b"}\n'))
    bucket.put("text/web_a.txt", b"a")
    bucket.put("text/other.bin", b"\0")
    assert texts(f"{bucket.url}/text", settings=s3.settings) == ["a", "b"]
    assert texts(f"{bucket.url}/text/web_b.jsonl.gz", settings=s3.settings) == ["b"]
    (file, _) = sources.find(f"{bucket.url}/text", s3.settings)
    assert (file.name, file.path) == ("text/web_a.txt", f"{bucket.url}/text/web_a.txt")
