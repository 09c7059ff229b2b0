"""The files with licence terms, and the notice of a Gemma derivative."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.core import terms

SENTENCE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("LICENSE", "LICENSE.txt", "license.md", "LICENSE_GEMMA.md", "Notice.txt")),
        *((name, True) for name in ("TERMS_OF_USE.md", "USE_POLICY.md", "COPYING", "licence-gemma.pdf")),
        *((name, False) for name in ("config.json", "README.md", "license.safetensors", "sub/LICENSE", "my_terms.txt")),
    ],
)
def test_files_with_terms_are_known_by_their_names(name: str, expected: bool) -> None:
    assert terms.is_terms(name) is expected


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        *((model, "gemma") for model in ("gemma2", "gemma3_text", "google/gemma-3-270m", "gemma-2-9b-it")),
        *((model, "") for model in ("gemma4_text", "google/gemma-4-2b", "qwen3", "my/gemma-2-x", "")),
    ],
)
def test_only_gemma_2_and_3_are_under_gemmas_terms(model: str, licence: str) -> None:
    assert terms.licence_of(model) == licence


def test_a_notice_lists_each_change_once_and_in_order(tmp_path: Path) -> None:
    for changes in (["tokenizer: 64 new tokens"], [], ["weights: trained"], ["weights: trained", "weights: merged"]):
        terms.add_notice(tmp_path, "gemma2", changes)
    text = (tmp_path / "NOTICE").read_text()
    assert text.startswith(SENTENCE) and text.count(SENTENCE) == 1
    assert text.endswith("as follows:\n- tokenizer: 64 new tokens\n- weights: trained\n- weights: merged\n")


def test_the_bases_own_notice_is_kept_whatever_its_encoding(tmp_path: Path) -> None:
    own = "© Someone\n- a line\n".encode("latin-1")
    (tmp_path / "Notice").write_bytes(own)
    terms.add_notice(tmp_path, "gemma3_text", ["weights: trained"])
    terms.add_notice(tmp_path, "gemma3_text", ["a line"])
    (notice,) = tmp_path.iterdir()
    assert notice.read_bytes().startswith(SENTENCE.encode())
    assert notice.read_bytes().endswith(b"as follows:\n- weights: trained\n- a line\n\n" + own)


def test_another_family_gets_no_notice(tmp_path: Path) -> None:
    terms.add_notice(tmp_path, "qwen3", ["weights: trained"])
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_elsewhere_and_a_huge_file_are_not_carried_along_and_a_caches_blob_is(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    snapshot = tmp_path / "models--x" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--x" / "blobs" / "aa"
    blob.parent.mkdir()
    blob.write_text("the terms")
    (snapshot / "LICENSE").symlink_to(secret)
    (snapshot / "NOTICE").symlink_to(blob)
    (snapshot / "TERMS.txt").write_bytes(b"x" * (terms.TERMS_BYTES + 1))
    assert terms.files_in(snapshot) == [snapshot / "NOTICE"]


def test_changes_are_added_to_a_notice_whose_last_newline_is_gone(tmp_path: Path) -> None:
    terms.add_notice(tmp_path, "gemma2", ["one"])
    notice = tmp_path / "NOTICE"
    notice.write_text(notice.read_text().rstrip("\n"))
    terms.add_notice(tmp_path, "gemma2", ["one", "two"])
    assert notice.read_text().endswith("- one\n- two\n")
