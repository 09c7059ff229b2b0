"""Sources to a dataset, from end to end."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bafogpt.core.errors import ConflictError, DataError, UsageError
from bafogpt.data import curriculum, tokenizer
from bafogpt.data.prepare import PrepareOptions, PrepareReport, prepare
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.manifest import TokenManifest
from bafogpt.storage.tokens.stream import TokenStream

from .vocabulary import CORPUS, GEMMA, require_shared

BYTES = tokenizer.load("bytes")

HELD_OUT = next(f"{n}" for n in range(99) if curriculum.held_out(curriculum.document_key(f"{n}"), 0.5))


def documents(bucket: Bucket, manifest: TokenManifest, split: str) -> list[str]:
    """The texts of a split, cut at their end tokens."""
    tokens = manifest.splits[split].tokens
    if not tokens:
        return []
    ids = TokenStream(bucket, manifest, split).read(0, tokens)
    assert ids[-1] == BYTES.eos_id
    return [BYTES.decode(part) for part in np.split(ids, np.flatnonzero(ids == BYTES.eos_id) + 1)[:-1]]


def run(source: Path | str, out: Bucket, **options: Any) -> PrepareReport:
    return prepare([str(source)], tokenizer=BYTES, out=out, options=PrepareOptions(**options))


def manifest_of(report: PrepareReport) -> TokenManifest:
    assert report.manifest is not None
    return report.manifest


def numbered(stage: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{stage} umbhalo {number}", "stage": stage, "source": f"from {stage}"} for number in range(count)]


def test_stages_come_in_curriculum_order_and_documents_in_that_of_their_files(corpus: Any, local: Bucket) -> None:
    corpus("a.jsonl", *numbered("web", 3), *numbered("news", 2), {"text": "igama", "stage": "dictionary"})
    path = corpus("b.jsonl", {"text": "more news", "stage": "news"}, {"text": "ikhasi", "stage": "wikipedia"})
    report = run(path.parent, local, validation=0)
    manifest = manifest_of(report)
    assert [stage.name for stage in manifest.splits["train"].stages] == ["dictionary", "news", "web", "wikipedia"]
    assert documents(local, manifest, "train") == [
        "igama",
        "news umbhalo 0",
        "news umbhalo 1",
        "more news",
        "web umbhalo 0",
        "web umbhalo 1",
        "web umbhalo 2",
        "ikhasi",
    ]
    assert [(source.path, source.documents) for source in manifest.sources] == [
        ("corpus/a.jsonl", 6),
        ("corpus/b.jsonl", 2),
    ]


def test_the_report_counts_what_was_read(corpus: Any, local: Bucket) -> None:
    path = corpus("web.jsonl", {"text": "amanzi ayimpilo"}, {"text": "  "}, {"text": "é", "source": "S"})
    report = run(path, local, validation=0)
    total = report.to_dict()["total"]
    assert total == {"documents": 2, "words": 3, "tokens": 15 + 1 + 2 + 1, "bytes": 17}
    assert report.sources["S"].bytes == 2
    assert (report.empty, report.files, report.train_tokens) == (1, 1, 19)


def test_every_document_is_closed_exactly_once_and_opened_only_on_request(corpus: Any, local: Bucket) -> None:
    path = corpus("web.jsonl", {"text": "a"}, {"text": "b<eos>"})
    read = TokenStream(local, manifest_of(run(path, local, validation=0)), "train").read(0, 9)
    assert np.flatnonzero(read == BYTES.eos_id).tolist() == [1, 8]
    opened = manifest_of(run(path, local, validation=0, bos=True, overwrite=True))
    read = TokenStream(local, opened, "train").read(0, 11)
    assert np.flatnonzero(read == BYTES.bos_id).tolist() == [0, 3]


def test_validation_is_disjoint_from_training_and_of_every_large_stage(corpus: Any, local: Bucket) -> None:
    records = [*numbered("news", 300), *numbered("poem", 20), *numbered("web", 19), *numbered("replay", 100)]
    again = [{"text": f" {record['text']}\n", "stage": "wikipedia"} for record in records if record["stage"] == "poem"]
    report = run(corpus("a.jsonl", *records, *again), local, validation=0.03)
    manifest = manifest_of(report)
    held, trained = documents(local, manifest, "validation"), documents(local, manifest, "train")
    assert {stage.name for stage in manifest.splits["validation"].stages} >= {"news", "poem", "replay"}
    assert not {each.strip() for each in held} & {each.strip() for each in trained}
    assert len(held) == len(set(held))
    assert report.duplicates >= 1, "the copy in wikipedia of the poem that is held out"
    assert 3 <= sum(each.startswith("news") for each in held) <= 18


def test_a_stage_of_twenty_has_a_validation_document_however_small_the_fraction(corpus: Any, local: Bucket) -> None:
    report = run(corpus("a.jsonl", *numbered("poem", 20), *numbered("web", 19)), local, validation=1e-12)
    held = manifest_of(report).splits["validation"]
    assert [(stage.name, stage.documents) for stage in held.stages] == [("poem", 1)]
    none = run(corpus("a.jsonl", *numbered("poem", 20)), local, validation=0, overwrite=True)
    assert none.validation_tokens == 0


def test_what_is_held_out_does_not_depend_on_files_and_their_order(corpus: Any, local: Bucket) -> None:
    records = numbered("news", 200)
    one = run(corpus("one.jsonl", *records), local.child("one"), validation=0.1)
    other = run(corpus("other.jsonl", *reversed(records), *numbered("web", 5)), local.child("other"), validation=0.1)
    held = [
        set(documents(local.child(name), manifest_of(each), "validation"))
        for name, each in (("one", one), ("other", other))
    ]
    assert held[0] == {each for each in held[1] if each.startswith("news")} != set()


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_replay_has_the_share_that_was_asked_for_in_every_stage(corpus: Any, local: Bucket, share: float) -> None:
    records = [*numbered("news", 300), *numbered("web", 300), *numbered("replay", 400)]
    report = run(corpus("a.jsonl", *records), local, replay_share=share, validation=0)
    assert report.replay_share == pytest.approx(share, rel=0.1)
    for stage in manifest_of(report).splits["train"].stages:
        assert stage.sources["replay/from replay"] / stage.tokens == pytest.approx(share, rel=0.1)


def test_shuffled_are_the_documents_of_the_curriculum_in_an_order_of_their_own(corpus: Any, local: Bucket) -> None:
    for stage in ("news", "web", "replay"):
        corpus(f"{stage}.jsonl", *numbered(stage, 60))
    path = corpus("more.jsonl", *numbered("poem", 60))
    made = {
        name: manifest_of(run(path.parent, local.child(name), replay_share=0.1, **options))
        for name, options in {
            "plain": {},
            "one": {"order": "shuffled"},
            "again": {"order": "shuffled", "seed": 1},
            "two": {"order": "shuffled", "seed": 2},
        }.items()
    }
    train = {name: documents(local.child(name), manifest, "train") for name, manifest in made.items()}
    assert len({tuple(sorted(texts)) for texts in train.values()}) == 1
    assert train["one"] == train["again"]
    assert len({tuple(train[name]) for name in ("plain", "one", "two")}) == 3
    (stage,) = made["one"].splits["train"].stages
    assert (stage.name, stage.documents) == ("shuffled", len(train["one"]))
    replayed = [each.sources.get("replay/from replay", 0) for each in made["plain"].splits["train"].stages]
    assert stage.sources["replay/from replay"] == sum(replayed) > 0
    assert made["one"].splits["validation"] == made["plain"].splits["validation"]
    # mixed through and through: no quarter of the stream is without a stage's documents
    quarter = len(train["one"]) // 4
    for start in range(0, 4 * quarter, quarter):
        assert {text.split()[0] for text in train["one"][start : start + quarter]} >= {"news", "poem", "web"}


def test_too_little_replay_reaches_the_last_stage(corpus: Any, local: Bucket) -> None:
    records = [*numbered("news", 200), *numbered("web", 200), *numbered("replay", 10)]
    report = run(corpus("a.jsonl", *records), local, replay_share=0.5, validation=0)
    shares = [stage.sources["replay/from replay"] for stage in manifest_of(report).splits["train"].stages]
    assert shares[0] == pytest.approx(shares[1], rel=0.3)
    assert sum(shares) == report.stages["replay"].tokens


def test_the_same_text_makes_the_same_dataset(local: Bucket) -> None:
    first, second = run("starter", local.child("first")), run("starter", local.child("second"))
    assert manifest_of(first).digest == manifest_of(second).digest
    assert sorted(each.path for each in local.child("first").list()) == sorted(
        each.path for each in local.child("second").list()
    )


def test_a_dataset_is_replaced_only_on_request(corpus: Any, local: Bucket) -> None:
    before = manifest_of(run(corpus("web.jsonl", {"text": "a"}), local))
    path = corpus("web.jsonl", {"text": "b"})
    with pytest.raises(ConflictError, match="holds a dataset already") as caught:
        run(path, local)
    assert "--overwrite" in caught.value.hint
    assert manifests.load(local).digest == before.digest
    with pytest.raises(DataError):
        run(corpus("broken.jsonl", {"text": "b", "stage": "web"}, "{"), local, overwrite=True)
    assert manifests.load(local).digest == before.digest, "a failure leaves the dataset"
    after = manifest_of(run(path, local, overwrite=True))
    assert documents(local, after, "train") == ["b"]
    assert documents(local, before, "train") == ["a"], "who reads the old one goes on undisturbed"


def test_the_manifest_is_written_last(corpus: Any, local: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    for method in ("put", "upload"):
        whole = getattr(Bucket, method)

        def noted(self: Bucket, path: str, *rest: Any, whole: Any = whole, **named: Any) -> None:
            written.append(path)
            whole(self, path, *rest, **named)

        monkeypatch.setattr(Bucket, method, noted)
    run(corpus("a.jsonl", *numbered("web", 50)), local, shard_bytes=256)
    assert len(written) > 3
    assert written.index("manifest.json") == len(written) - 1


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([{"text": HELD_OUT, "stage": "web"}], "none remains for training"),
        ([], r"a\.jsonl: no text \(0 empty records\)"),
        ([{"text": " ", "stage": "web"}], r"a\.jsonl: no text \(1 empty records\)"),
        ([{"text": "a", "stage": "replay"}], r"a\.jsonl: only replay text"),
    ],
)
def test_a_corpus_without_training_text_is_refused(corpus: Any, local: Bucket, lines: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        run(corpus("a.jsonl", *lines), local, validation=0.5)
    assert not local.exists("manifest.json")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        *(({"replay_share": share}, "share") for share in (1.0, -0.1)),
        *(({"validation": share}, "share") for share in (0.6, float("nan"))),
        ({"seed": -1}, "seed -1"),
        ({"stage": "wen"}, "--stage: unknown stage 'wen'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((UsageError, DataError), match=problem):
        PrepareOptions(**options)


def test_progress_counts_every_document(corpus: Any, local: Bucket) -> None:
    told: list[int] = []
    path = corpus("a.jsonl", *numbered("web", 2500))
    prepare([str(path)], tokenizer=BYTES, out=local, progress=told.append)
    assert len(told) > 1
    assert sum(told) == 2500


def test_from_bucket_to_bucket_with_a_tokenizer_json(bucket: Bucket, s3: Any, tokenizer_folder: Path) -> None:
    chosen = tokenizer.load(str(tokenizer_folder))
    bucket.put("text/web.jsonl", b'{"text": "Amanzi ayimpilo <eos>"}\n{"text": "Isikhathi yimali"}\n')
    out = bucket.child("data/small")
    options = PrepareOptions(validation=0)
    report = prepare([f"{bucket.url}/text"], tokenizer=chosen, out=out, options=options, settings=s3.settings)
    manifest = manifests.load(out)
    assert manifest.digest == manifest_of(report).digest
    assert out.get("tokenizer/tokenizer.json") == (tokenizer_folder / "tokenizer.json").read_bytes()
    ids = TokenStream(out, manifest, "train").read(0, report.train_tokens)
    ends = np.flatnonzero(ids == chosen.eos_id)
    begins = [0, *(ends + 1)]
    assert [chosen.decode(ids[begin : end - 1]) for begin, end in pairwise(begins)] == [
        "Amanzi ayimpilo <eos>",
        "Isikhathi yimali",
    ]


@pytest.mark.slow
def test_a_million_words_with_the_tokenizer_of_gemma(local: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    require_shared(CORPUS, GEMMA)
    chosen = tokenizer.load(str(GEMMA))
    began = time.monotonic()
    report = prepare([str(CORPUS)], tokenizer=chosen, out=local)
    with capsys.disabled():
        print(
            f" {report.total.words:,} words, {report.total.tokens:,} tokens in {time.monotonic() - began:.1f} s", end=""
        )
    manifest = manifest_of(report)
    assert manifest.dtype == "uint32"
    assert report.total.words > 1_000_000
    assert report.replay_share == pytest.approx(0.05, rel=0.1)
    ids = TokenStream(local, manifest, "train").read(0, report.train_tokens)
    assert np.count_nonzero(ids == chosen.eos_id) == manifest.splits["train"].documents
    assert np.count_nonzero(ids == chosen.bos_id) == manifest.splits["train"].documents, "as Gemma's tokenizer does"
    assert manifest.tokenizer.add_bos
