"""Models expanded for a continued tokenizer: what stays, what is new, what is refused, what it takes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as FastTokenizer

from bafogpt.cli import main as command_line
from bafogpt.core.errors import BafoError, ConfigError, CorruptError, NotFoundError
from bafogpt.data.vocabulary.extend import ExtendOptions, extend
from bafogpt.data.vocabulary.train import train
from bafogpt.model.formats import hf_config, param_names
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.model.resize_embeddings import Init, expand
from tests.published import load

from .conftest import SaveGemma
from .small_models import logits_of

BASE, NEW, ALL = 700, 90, 832  # 790 ids, on to a multiple of 64
BOS = 2
ZULU = "Izingane zifunda isiZulu esikoleni namhlanje ekuseni, ngiyabonga kakhulu mngane wami."
ENGLISH = "The farmers come to town before sunrise, and they put up their tables along the old wall."


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    base: Path
    new: Path
    other: Path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    folder = tmp_path_factory.mktemp("tokenizers")
    base, full, other, new = (folder / name for name in ("base", "full", "other", "new"))
    train(["starter"], base, pieces=BASE, language="eng")
    train(["starter"], other, pieces=BASE, language="zul")
    extend(str(base), ["starter"], ["starter"], full, options=ExtendOptions(pieces=NEW), processes=1)
    shutil.copytree(full, new)
    _cut_to(new, NEW)
    return Tokenizers(base, new, other)


def _cut_to(folder: Path, pieces: int) -> None:
    """A continued tokenizer whose size is no multiple of 64, as another tool could make one."""
    from bafogpt.core import digest

    file, lineage = folder / "tokenizer.json", folder / "tokenizer.lineage.json"
    content = json.loads(file.read_text())
    dropped = len(content["model"]["vocab"]) - BASE - pieces
    vocab = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])[: BASE + pieces]
    content["model"] |= {"vocab": dict(vocab), "merges": content["model"]["merges"][:-dropped]}
    file.write_text(json.dumps(content, ensure_ascii=False))
    facts = json.loads(lineage.read_text())
    facts |= {"pieces": facts["pieces"][:pieces], "tokenizer": digest.of_file(file)}
    lineage.write_text(json.dumps(facts, ensure_ascii=False))


@pytest.fixture
def base(saved: SaveGemma, tokenizers: Tokenizers) -> Any:
    """A model with the base tokenizer: ``base(tied=True)``; 704 rows, four of them padding."""

    def make(tied: bool = True, rows: int = 704) -> Path:
        path = saved("base", vocab_size=rows, tie_word_embeddings=tied)
        for file in tokenizers.base.iterdir():
            shutil.copyfile(file, path / file.name)
        return path

    return make


def ids_of(tokenizer: Path, text: str) -> torch.Tensor:
    engine = FastTokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return torch.tensor([engine.encode(text, add_special_tokens=False).ids])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("init", ["mean", "subtokens"])
def test_base_text_keeps_its_logits_and_only_columns_are_added(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, tied: bool, init: Init
):
    path = base(tied)
    report = expand(path, tokenizers.new, tmp_path / "out", init=init)
    assert (report.base_vocabulary, report.pieces, report.vocabulary, report.tied) == (BASE, NEW, ALL, tied)
    ids = ids_of(tokenizers.base, ENGLISH)

    before, after = logits_of(load(path), ids), logits_of(load(tmp_path / "out"), ids)

    assert after.shape[-1] == ALL
    torch.testing.assert_close(after[..., :BASE], before[..., :BASE], atol=1e-6, rtol=0)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content == json.loads((path / "config.json").read_text()) | {"vocab_size": ALL}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_of_the_base_are_the_same_bits_and_new_ones_are_the_means_they_are_said_to_be(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, tied: bool
):
    path = base(tied)
    expand(path, tokenizers.new, tmp_path / "mean", init="mean")
    expand(path, tokenizers.new, tmp_path / "sub", init="subtokens")
    lineage = json.loads((tokenizers.new / "tokenizer.lineage.json").read_text())
    old, mean, sub = (ModelFolder.open(each).weights for each in (path, tmp_path / "mean", tmp_path / "sub"))
    for name, weight in old.items():
        if name not in (param_names.HF_EMBEDDING, param_names.HF_HEAD):
            assert torch.equal(weight.tensor(), sub[name].tensor())
            continue
        rows = weight.tensor()[:BASE]
        average = rows.double().mean(dim=0).float()
        assert torch.equal(mean[name].tensor()[:BASE], rows) and torch.equal(sub[name].tensor()[:BASE], rows)
        torch.testing.assert_close(mean[name].tensor()[BASE:], average.expand(ALL - BASE, -1))
        for piece in lineage["pieces"]:
            expected = rows[piece["constituents"]].mean(dim=0)
            torch.testing.assert_close(sub[name].tensor()[piece["id"]], expected)
        torch.testing.assert_close(sub[name].tensor()[BASE + NEW :], average.expand(ALL - BASE - NEW, -1))


@pytest.mark.parametrize("init", ["mean", "subtokens"])
def test_the_command_reports_the_loss_on_isizulu_before_training_and_it_is_the_same_saved_and_reloaded(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, init: Init, capsys: pytest.CaptureFixture[str]
):
    path, text = base(), tmp_path / "held-out.txt"
    text.write_text(ZULU)
    words = ["expand", str(path), "--tokenizer", str(tokenizers.new), "--out", str(tmp_path / "out"), "--init", init]
    assert command_line.main(["model", *words, "--text", str(text), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)

    for name, folder in (("before", path), ("after", tmp_path / "out")):
        ids = torch.cat([torch.tensor([[BOS]]), ids_of(folder, f"{ZULU}\n")], dim=1)  # as its tokenizer begins a text
        loss = torch.nn.functional.cross_entropy(logits_of(load(folder), ids)[0, :-1], ids[0, 1:]).item()
        assert said[name]["loss"] == pytest.approx(loss, rel=1e-5) and math.isfinite(loss)
        size = len(ZULU.encode()) + 1
        assert said[name]["bits_per_byte"] == pytest.approx(loss * said[name]["tokens"] / math.log(2) / size, rel=1e-5)
    assert (ids >= BASE).any(), "the text has new pieces"
    after = said["after"]
    assert after["new_tokens"] == (ids >= BASE).sum() and said["before"]["new_tokens"] == 0
    parts = after["new_loss"] * after["new_tokens"] + after["old_loss"] * (after["tokens"] - after["new_tokens"])
    assert parts == pytest.approx(after["loss"] * after["tokens"])
    load(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(load(tmp_path / "again"), ids), logits_of(load(tmp_path / "out"), ids))


def test_text_without_isizulu_is_refused_before_anything_is_written(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "english.jsonl").write_text(json.dumps({"text": ENGLISH, "lang": "eng", "stage": "web"}) + "\n")
    words = ["expand", str(base()), "--tokenizer", str(tokenizers.new), "--out", str(tmp_path / "out")]
    assert command_line.main(["model", *words, "--text", str(tmp_path / "english.jsonl")]) == 1
    assert "no text in 'zul'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_transformers_loads_the_tokenizer_that_comes_with_it(base: Any, tokenizers: Tokenizers, tmp_path: Path):
    from transformers import AutoTokenizer

    expand(base(), tokenizers.new, tmp_path / "out")

    auto = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert auto(ZULU, add_special_tokens=False)["input_ids"] == ids_of(tokenizers.new, ZULU)[0].tolist()


Spoil = Callable[[Path, Path, Tokenizers], object]
LINEAGE = "tokenizer.lineage.json"


def lineage_with(**changes: Any) -> Spoil:
    """A change of the lineage: ``size`` of the base, ``pieces`` that are kept, the first piece's ``constituent``."""

    def spoil(path: Path, tokenizer: Path, tokenizers: Tokenizers) -> None:
        file = tokenizer / LINEAGE
        content = json.loads(file.read_text())
        content["base"]["size"] = changes.get("size", BASE)
        content["pieces"] = content["pieces"][: changes.get("pieces")]
        if "constituent" in changes:
            content["pieces"][0]["constituents"] = [changes["constituent"]]
        file.write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (
            lambda path, _, made: shutil.copy(made.other / "tokenizer.json", path),
            ConfigError,
            "extends another tokenizer than",
        ),
        (lambda path, tokenizer, _: (tokenizer / LINEAGE).unlink(), NotFoundError, f"no {LINEAGE}"),
        (
            lambda path, tokenizer, _: (tokenizer / "tokenizer.json").open("a").write(" "),
            ConfigError,
            "is not of the tokenizer.json beside it",
        ),
        (lambda path, tokenizer, _: os.truncate(tokenizer / LINEAGE, 999), CorruptError, "not a lineage"),
        (lineage_with(constituent=BASE + 1), CorruptError, "a constituent is not a token of the base"),
        (lambda path, tokenizer, _: shutil.rmtree(tokenizer), NotFoundError, "no such folder"),
        (lineage_with(size=200, pieces=0), CorruptError, "it lacks the piece"),
        (lineage_with(size=-5, pieces=0), CorruptError, "a base of -5 ids"),
        (lineage_with(size=699.5), CorruptError, "a base of 699.5 ids"),
        (lineage_with(pieces=-1), CorruptError, "it lacks the piece"),
        (lineage_with(constituent=10.7), CorruptError, "a constituent is not a number"),
        (lineage_with(constituent=True), CorruptError, "a constituent is not a number"),
        (lineage_with(constituent=10**30), CorruptError, "not a lineage"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, spoil: Spoil, kind: type[BafoError], words: str
):
    path, tokenizer = base(), tmp_path / "tokenizer"
    shutil.copytree(tokenizers.new, tokenizer)
    spoil(path, tokenizer, tokenizers)

    with pytest.raises(kind) as error:
        expand(path, tokenizer, tmp_path / "out")

    assert words in error.value.message and error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_held_against_the_size(base: Any, tokenizers: Tokenizers, tmp_path: Path):
    path = base(rows=768)
    (path / "tokenizer.json").unlink()

    with pytest.raises(ConfigError, match=r"extends a tokenizer of 700, .* has 768 rows"):
        expand(path, tokenizers.new, tmp_path / "out")


@pytest.mark.parametrize("rows", [699, 700, 1000], ids=["an id beyond the rows", "as many", "padded far"])
@pytest.mark.parametrize("init", ["mean", "subtokens"])
def test_ids_beyond_the_rows_get_the_mean_and_new_pieces_their_place(
    base: Any, tokenizers: Tokenizers, tmp_path: Path, rows: int, init: Init
):
    path = base(rows=rows)

    report = expand(path, tokenizers.new, tmp_path / "out", init=init)

    assert (report.base_vocabulary, report.vocabulary) == (BASE, ALL)
    old, new = (
        ModelFolder.open(each).weights["model.embed_tokens.weight"].tensor() for each in (path, tmp_path / "out")
    )
    there = min(rows, BASE)
    average = old[:there].double().mean(dim=0).float()
    assert torch.equal(new[:there], old[:there])
    torch.testing.assert_close(new[there:BASE], average.expand(BASE - there, -1))
    lineage = json.loads((tokenizers.new / "tokenizer.lineage.json").read_text())
    for piece in lineage["pieces"]:
        expected = old[piece["constituents"]].mean(dim=0) if init == "subtokens" else average
        torch.testing.assert_close(new[piece["id"]], expected)


def test_a_piece_written_with_a_token_that_has_no_row_is_refused(base: Any, tokenizers: Tokenizers, tmp_path: Path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tokenizers.new, tokenizer)
    file = tokenizer / "tokenizer.lineage.json"
    content = json.loads(file.read_text())
    content["pieces"][3]["constituents"] = [5, BASE - 1]
    file.write_text(json.dumps(content))

    with pytest.raises(ConfigError, match=r"a piece contains token 699, .* has 699 rows"):
        expand(base(rows=BASE - 1), tokenizer, tmp_path / "out")


MEASURE = """
import sys
from collections.abc import Callable
from pathlib import Path
from bafogpt.model.resize_embeddings import expand
def memory(kind):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(kind + ":")[2].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = memory("VmRSS")
expand(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), init=sys.argv[4])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("init", ["mean", "subtokens"])
def test_the_peak_of_memory_is_below_one_and_a_fifth_of_the_embedding_it_makes(tmp_path: Path, init: Init):
    path, tokenizer, pieces, width, rows = tmp_path / "base", tmp_path / "tokenizer", 8_000, 1024, 96_000
    _large(path, tokenizer, rows, pieces, width)

    command = [sys.executable, "-c", MEASURE, str(path), str(tokenizer), str(tmp_path / "out"), init]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )

    peak = int(done.stdout.splitlines()[-1])
    embedding = (rows + pieces) * width * 2
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > embedding
    assert 0 < peak <= 1.2 * embedding, f"{peak / embedding:.2f} of the embedding"


def _large(path: Path, tokenizer: Path, rows: int, pieces: int, width: int) -> None:
    """A bfloat16 model of one small layer whose embedding is 197 MB, and a continued tokenizer made up for it."""
    from bafogpt.core import digest

    sizes = {"vocab_size": rows, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "gemma2", **sizes}))
    config = hf_config.to_litgpt(hf_config.read(path), "config.json")
    tensors = {name: torch.rand(shape).bfloat16() for name, shape in param_names.shapes(config, tied=True).items()}
    save_file(tensors, path / "model.safetensors")
    tokenizer.mkdir()
    vocab = {f"p{number}": number for number in range(rows + pieces)}
    (tokenizer / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    made = [{"id": rows + i, "constituents": [i, rows - 1 - i, 7 * i % rows]} for i in range(pieces)]
    facts = {
        "schema": "bafogpt.tokenizer.lineage/1",
        "tokenizer": digest.of_file(tokenizer / "tokenizer.json"),
        "base": {"name": "base", "digest": "blake3:none", "size": rows},
        "pieces": made,
    }
    (tokenizer / "tokenizer.lineage.json").write_text(json.dumps(facts))
