"""A Gemma's terms on their way: pulled, expanded, trained, exported, merged, published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bafogpt.core.settings import Settings
from bafogpt.data.vocabulary.extend import ExtendOptions, extend
from bafogpt.data.vocabulary.train import train
from bafogpt.folders.hub import card
from bafogpt.folders.uri import locate
from bafogpt.model import adapter_export, export, pull, runs
from bafogpt.model.adapter import AdapterConfig
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.merge import merge
from bafogpt.model.resize_embeddings import expand
from bafogpt.reports import publish
from bafogpt.reports.publish import PublishOptions
from bafogpt.storage.bucket import Bucket

from .conftest import SaveGemma
from .small_models import put_run, text
from .test_merge import WIDE, adapter_for

TERMS = {"LICENSE.txt": "the terms", "USE_POLICY.md": "the policy"}
SENTENCE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(bucket=f"file://{tmp_path}/bucket", home=str(tmp_path / "home"))


@pytest.fixture
def bucket(settings: Settings) -> Bucket:
    bucket = Bucket.open(settings.bucket, settings)
    bucket.create()
    return bucket


@pytest.fixture
def base(saved: SaveGemma) -> Path:
    """A published Gemma with a copy of the terms, and no NOTICE."""
    folder = saved("base", vocab_size=704, **WIDE)
    train(["starter"], folder / "tokenizer", pieces=700, language="eng")
    shutil.copyfile(folder / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
    shutil.rmtree(folder / "tokenizer")
    for name, content in TERMS.items():
        (folder / name).write_text(content)
    return folder


def changes_in(folder: Path) -> list[str]:
    """What the NOTICE of a folder lists; the terms are there too."""
    for name, content in TERMS.items():
        assert (folder / name).read_text() == content
    notice = (folder / "NOTICE").read_text()
    assert notice.count(SENTENCE) == 1
    return [line.removeprefix("- ") for line in notice.splitlines() if line.startswith("- ")]


def test_terms_go_from_pull_to_publish_and_the_notice_lists_every_change(
    base: Path, bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    pulled = pull.fetch(locate(str(base), settings, "local"), tmp_path / "pulled", settings).path
    assert not (pulled / "NOTICE").exists(), "a verified copy has no file of ours"

    extend(str(pulled), ["starter"], ["starter"], tmp_path / "tok", options=ExtendOptions(pieces=60), processes=1)
    assert {*TERMS} <= {path.name for path in (tmp_path / "tok").iterdir()}
    (tmp_path / "tok" / "USE_POLICY.md").unlink()  # the model has it
    expanded = tmp_path / "bucket" / "models" / "zulu"
    expand(pulled, tmp_path / "tok", expanded, init="subtokens")
    listed = ["tokenizer, config.json, weights: 68 new tokens and their rows (expand, subtokens)"]
    assert changes_in(expanded) == listed

    put_run(bucket, "first", expanded, tmp_path / "first", began="models/zulu")
    put_run(bucket, "second", expanded, tmp_path / "second", began="runs/first")
    exported = tmp_path / "exported"
    export.write(runs.fetch(bucket, runs.find(bucket, "second"), tmp_path / "run"), exported, "hf")
    listed += ["weights: trained by run first", "weights: trained by run second"]
    assert changes_in(exported) == listed

    merge(exported, adapter_for(exported, tmp_path / "adapter"), tmp_path / "merged", list(text(2, 24)))
    listed += ["weights: a LoRA adapter merged into them"]
    assert changes_in(tmp_path / "merged") == listed

    export.write(export.open_folder(tmp_path / "merged"), tmp_path / "lit", "litgpt")
    assert changes_in(tmp_path / "lit") == [*listed, "weights: converted to litgpt's format"]

    found = publish.from_folder(bucket, tmp_path / "merged", PublishOptions(dtype="float16"), settings)
    assert changes_in(found.build(tmp_path / "release")) == [*listed, "weights: converted to float16"]
    page = card.write("hf://zulu/model", found.facts, 0, 0).decode()
    assert "license: gemma\n" in page
    assert "https://ai.google.dev/gemma/terms" in page and "https://ai.google.dev/gemma/prohibited_use_policy" in page


def test_an_adapter_and_a_run_merged_with_its_base_carry_them_too(
    base: Path, bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "bucket" / "models" / "base"
    shutil.copytree(base, folder)
    put_run(bucket, "tuned", folder, tmp_path / "saved", began="models/base", adapter=AdapterConfig(r=4, alpha=8.0))
    run = runs.find(bucket, "tuned")
    adapter_export.export_adapter(bucket, run, tmp_path / "scratch", tmp_path / "pairs")
    assert changes_in(tmp_path / "pairs") == ["weights: trained by run tuned"]
    adapter_export.export_merged(bucket, run, tmp_path / "again", tmp_path / "merged", settings)
    assert changes_in(tmp_path / "merged") == [
        "weights: trained by run tuned",
        "weights: a LoRA adapter merged into them",
    ]


def test_a_network_of_gemmas_shape_that_began_with_random_weights_is_no_derivative(
    base: Path, bucket: Bucket, tmp_path: Path
) -> None:
    put_run(bucket, "first", base, tmp_path / "first", began=None)
    put_run(bucket, "second", base, tmp_path / "second", began="runs/first")
    for form in export.FORMATS:
        found = runs.fetch(bucket, runs.find(bucket, "second"), tmp_path / f"run-{form}").as_dtype("bfloat16")
        export.write(found, tmp_path / form, form)
        assert not (tmp_path / form / "NOTICE").exists()


@pytest.mark.parametrize("gone", ["models/base", "runs/first"])
def test_where_the_records_of_the_base_are_gone_the_jobs_model_name_decides(bucket: Bucket, gone: str) -> None:
    record = {"job": {"train": {"model": {"name": "Gemma-2-2b", "checkpoint": gone}}}}
    origin = runs.origin(bucket, runs.RunModel("second", record, None))  # type: ignore[arg-type]
    assert (origin.folder, origin.model) == ("", "Gemma-2-2b")
    assert origin.changes is not None and origin.changes[-1] == "weights: trained by run second"


def test_another_familys_licence_goes_along_without_a_notice(saved: SaveGemma, tmp_path: Path) -> None:
    folder = saved()
    (folder / "LICENSE").write_text("Apache")
    model = ModelFolder.open(folder)
    assert [path.name for path in model.companions()][-1] == "LICENSE"
    found = replace(export.from_folder(model), content={**model.content, "model_type": "qwen3"})
    export.write(found, tmp_path / "lit", "litgpt")
    assert (tmp_path / "lit" / "LICENSE").read_text() == "Apache"
    assert not (tmp_path / "lit" / "NOTICE").exists()
