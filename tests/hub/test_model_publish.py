"""``bafogpt model publish``: from a run's records to the Hub, and back by transformers and by peft, as others do it.

The runs are real ones: pretrained and fine-tuned by the supervisor, once for all tests here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bafogpt.cli import main as command_line
from bafogpt.core.errors import ExitCode
from bafogpt.core.settings import Settings
from bafogpt.data import instructions, prompts, tokenizer
from bafogpt.data.instructions import InstructionOptions
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests

from ..conftest import S3
from .conftest import REPO
from .server import TOKEN, Hub

ROOT = Path(__file__).parents[2]
SIZES = "{n_layer: 2, n_embd: 64, n_head: 2, n_query_groups: 1, head_size: 32, intermediate_size: 128}"
BASE, TUNED = "published", "published-tuned"
COMMIT, DIGEST = "0123456789abcdef0123456789abcdef01234567", f"sha256:{'ab' * 32}"
REGISTRY = "registry.example/of-nobody"
IDS = [[3 * place % 300 for place in range(40)]]


def supervised(s3: S3, home: Path, job: str, name: str, *changes: str) -> None:
    """``bafogpt job run`` to its end, as a launched machine runs it."""
    launched = {"BAFOGPT_GIT": COMMIT, "BAFOGPT_IMAGE": f"{REGISTRY}/train@{DIGEST}", "BAFOGPT_PRICE_PER_HOUR": "36"}
    words = [word for each in (*changes, "supervisor.drill_kill_at_step=null") for word in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-m", "bafogpt.cli.main", "job", "run", job, "--run", name, *words],
        env={**os.environ, **s3.environment, **launched, "BAFOGPT_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


EVERY = ("train.validation={every: 3, samples: 8}", "train.checkpoint.every=3", f"train.model.overrides={SIZES}")


@pytest.fixture(scope="module")
def made(s3: S3, starter: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """The session's bucket with the run ``published`` in it."""
    supervised(s3, tmp_path_factory.mktemp("home"), "demo", BASE, "train.tokens=6144", *EVERY)
    return starter


@pytest.fixture(scope="module")
def tuned(s3: S3, made: Bucket, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fine-tuning of it, ``published-tuned``."""
    path, words = "data/published-instructions", tokenizer.load("bytes")
    instructions.prepare(
        ["starter"],
        style=prompts.load("plain", words),
        tokenizer=words,
        out=made.child(path),
        options=InstructionOptions(context=128, validation=0.1),
    )
    changes = ("train.tokens=4096", f"train.data.path={path}", f"train.model.checkpoint=runs/{BASE}")
    supervised(s3, tmp_path_factory.mktemp("home"), "demo-finetune", TUNED, *changes, *EVERY)
    return TUNED


Command = Callable[..., Any]


@pytest.fixture
def publish(hub: Hub, settings: Settings, made: Bucket, tmp_path: Path, monkeypatch: Any, capsys: Any) -> Command:
    """``publish(RUN, TARGET, …)``: what the command reports, as JSON."""
    monkeypatch.setenv("BAFOGPT_HOME", str(tmp_path / "home"))

    def run(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert command_line.main(["model", "publish", *words, *(["--json"] if not code else [])]) == code
        shown = capsys.readouterr()
        assert TOKEN not in shown.out + shown.err
        return json.loads(shown.out) if not code else shown.err.strip().splitlines()[-2:]

    return run


def from_the_hub(hub: Hub, script: str, home: Path) -> torch.Tensor:
    """Logits in a process that uses only transformers or peft and the name on the Hub."""
    lines = [
        "import sys, torch",
        script,
        f"ids = torch.tensor({IDS})",
        "torch.save(model.eval()(ids).logits, sys.argv[1])",
    ]
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home)}
    target = home / "logits.pt"
    home.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(target)], env=environment, check=True, timeout=300)
    found: torch.Tensor = torch.load(target, weights_only=True)
    return found


def exported(name: str, out: Path, *words: str) -> torch.Tensor:
    """Logits of what ``bafogpt model export`` makes of the same run."""
    from transformers import AutoModelForCausalLM

    assert command_line.main(["model", "export", name, "--out", str(out), *words]) == 0
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(out).eval()(torch.tensor(IDS)).logits
    return found


def published(hub: Hub, name: str = "zulu/model") -> dict[str, bytes]:
    repo = hub.repos[name]
    return {path: file.content for path, file in repo.commits[repo.branches["main"]].items()}


def test_a_run_is_published_private_with_its_card_and_comes_back_with_equal_logits(
    publish: Command, hub: Hub, made: Bucket, tmp_path: Path
):
    first = publish(BASE, REPO, "--license", "gemma")

    assert (first["run"], first["step"]) == (BASE, 6)
    assert hub.repos["zulu/model"].private
    found = published(hub)
    assert {"config.json", "model.safetensors", "loss.png", "manifest.json", "README.md"} <= found.keys()
    assert found["loss.png"].startswith(b"\x89PNG")
    card = found["README.md"].decode()
    header = card.split("\n---\n")[0]
    assert "license: gemma" in header and "base_model" not in header, "it began with random weights"
    digest = manifests.load(made.child("data/starter")).digest
    record = json.loads(made.get(f"runs/{BASE}/run.json"))
    last = [line for line in lines(made, BASE) if "validation_loss" in line][-1]
    for text in (
        f"| Manifest | `{digest}` |",
        "| optimizer.learning_rate | 0.003 |",
        "| Training tokens | 6,144 |",
        "| Hours | 0.0",
        f"| all | {last['validation_loss']:.4f} | {last['validation_bpb']:.4f} |",
        f"| git | {COMMIT} |",
        f"| image | {DIGEST} |",
        "| Cost | $0.",
        "![Training and validation loss over the steps](loss.png)",
        'AutoModelForCausalLM.from_pretrained("zulu/model")',
        *(f"| {name} | {scores['loss']:.4f} |" for name, scores in last["validation_stages"].items()),
    ):
        assert text in card, text
    private = (TOKEN, REGISTRY, str(tmp_path), record["host"], os.environ["HOME"])
    assert not [text for text in private if text and text in card + found["manifest.json"].decode()]

    script = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained('zulu/model')"
    theirs = from_the_hub(hub, script, tmp_path / "theirs")
    assert torch.equal(theirs, exported(BASE, tmp_path / "ours"))
    assert publish(BASE, REPO, "--license", "gemma")["commit"] == first["commit"], "there is nothing to do"
    hub.repos["zulu/model"].private = False
    assert "is public: anyone can read this" in publish(BASE, REPO, "--best", code=ExitCode.USAGE)[0]


def lines(bucket: Bucket, name: str) -> list[dict[str, Any]]:
    from bafogpt.runs.store import RunStore

    return RunStore(bucket).metrics(name)


@pytest.mark.slow
def test_a_fine_tuned_run_is_published_merged_and_its_adapter_alone(
    publish: Command, hub: Hub, tuned: str, tmp_path: Path
):
    publish(tuned, REPO, "--public", "--base-model", "zulu/base")
    publish(tuned, "hf://zulu/adapter", "--adapter", "--base-model", "zulu/base")
    publish(BASE, "hf://zulu/base")

    assert not hub.repos["zulu/model"].private and hub.repos["zulu/adapter"].private
    merged, adapter = published(hub)["README.md"].decode(), published(hub, "zulu/adapter")
    assert "Fine-tuned from [zulu/base]" in merged and "| adapter.r | 8 |" in merged
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "zulu/base"
    assert "library_name: peft" in adapter["README.md"].decode()
    whole = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained('zulu/model')"
    theirs = from_the_hub(hub, whole, tmp_path / "theirs")
    assert torch.equal(theirs, exported(TUNED, tmp_path / "ours", "--merge"))
    assert not torch.allclose(theirs, exported(BASE, tmp_path / "base"), atol=1e-3), "it has learned something"
    pairs = (
        "from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained('zulu/adapter')"
    )
    apart = from_the_hub(hub, pairs, tmp_path / "peft")
    out = tmp_path / "original"
    words = ["model", "merge", str(tmp_path / "base"), f"runs/{TUNED}", "--into", "original", "--out", str(out)]
    assert command_line.main(words) == 0
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(out).eval()(torch.tensor(IDS)).logits
    torch.testing.assert_close(apart, expected, atol=1e-4, rtol=0)
    assert command_line.main(["model", "export", TUNED, "--out", str(tmp_path / "pairs")]) == 0
    assert {path.name for path in (tmp_path / "pairs").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_best_checkpoint_a_folder_and_a_bucket(publish: Command, hub: Hub, made: Bucket, tmp_path: Path):
    from bafogpt.storage.checkpoints.store import CheckpointStore

    complete = CheckpointStore(made.child(f"runs/{BASE}/checkpoints")).complete()
    best = min(complete, key=lambda each: each.metadata["validation_loss"]).step

    found = publish(BASE, "models/of-the-best", "--best")

    assert found["step"] == best
    folder = made.child("models/of-the-best")
    card = folder.get("README.md").decode()
    assert "![Training and validation loss" in card and "from_pretrained" not in card
    exported(BASE, tmp_path / "here", "--step", str(best))
    assert folder.get("model.safetensors") == (tmp_path / "here" / "model.safetensors").read_bytes()
    publish(str(tmp_path / "here"), "hf://zulu/folder", "--dtype", "bfloat16")
    assert json.loads(published(hub, "zulu/folder")["config.json"])["torch_dtype"] == "bfloat16"


def test_a_dry_run_shows_the_card_and_sends_nothing(publish: Command, hub: Hub):
    found = publish(BASE, REPO, "--dry-run")

    assert "## Evaluation" in found["card"] and not found["public"]
    assert "license: other" in found["card"], "a network of Gemma's shape is no Gemma"
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("publishd", REPO),
            ExitCode.JOB_NOT_FOUND,
            "no run 'publishd' in s3://bafogpt-tests (did you mean 'published'?)",
        ),
        ((BASE, REPO, "--adapter"), ExitCode.USAGE, "has trained a whole model, not an adapter"),
        ((BASE, REPO, "--step", "4"), ExitCode.FAILURE, "no complete checkpoint of step 4 (available: 3, 6)"),
        ((BASE, REPO, "--step", "3", "--best"), ExitCode.USAGE, "exclude each other"),
        ((BASE, "hf://zulu"), ExitCode.USAGE, "is not a repository of the Hub"),
        ((BASE, REPO, "--license", "a\nb: c"), ExitCode.USAGE, "is not valid on the Hub"),
    ],
)
def test_impossible_publications_are_refused(
    publish: Command, hub: Hub, words: tuple[str, ...], code: ExitCode, message: str
):
    error, hint = publish(*words, code=code)

    assert error.startswith("error: ") and message in error
    assert hint.startswith(" hint: ")
    assert hub.repos == {}


def test_without_a_token_nothing_begins(publish: Command, hub: Hub, monkeypatch: Any):
    monkeypatch.delenv("HF_TOKEN")

    error, hint = publish(BASE, REPO, code=ExitCode.AUTH)

    assert (error, hint) == ("error: HF_TOKEN is not set", " hint: export HF_TOKEN=… with a token that may write it")
