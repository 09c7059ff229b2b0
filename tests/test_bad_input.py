"""Whatever is wrong, two lines say what and what to type next, the exit code tells its kind, and nothing is lost.

Through the command line as a person meets it, in processes of its own, on a real S3 server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bafogpt.core.errors import ExitCode
from bafogpt.data import prepare, tokenizer
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest

from .conftest import S3

ROOT = Path(__file__).parents[1]
TINY = [
    "train.tokens=1024",
    "train.data={path: data/bad-input, sequence_length: 32}",
    "train.batch={tokens: 256, micro_batch_size: 2}",
    "train.model.overrides={n_layer: 1, n_embd: 32, n_head: 1, n_query_groups: 1, head_size: 32, intermediate_size: 8}",
    "train.validation.every=0",
    "supervisor.drill_kill_at_step=null",
]
SET = [word for each in TINY for word in ("--set", each)]


@dataclass(frozen=True)
class Ended:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> tuple[str, str]:
        """The two lines of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) >= 2, self
        return lines[-2], lines[-1]


@pytest.fixture
def bafogpt(s3: S3, tmp_path: Path) -> Callable[..., Ended]:
    """``bafogpt("cloud", "ls", BAFOGPT_HOME=…)``: one command on the session's bucket, with a home of its own."""

    def run(*words: str, **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "bafogpt.cli.main", *words],
            env={**os.environ, **s3.environment, "BAFOGPT_HOME": str(tmp_path / "home"), **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


Command = Callable[..., Ended]


def says(ended: Ended, code: ExitCode, message: str, hint: str) -> None:
    """The command ended with that code, and its last two lines hold those words."""
    error, next_step = ended.last
    assert ended.code == code, ended
    assert error.startswith("error: ")
    assert message in error
    assert next_step.startswith(" hint: ")
    assert hint in next_step


@pytest.fixture
def dataset(s3: S3) -> Bucket:
    """``data/bad-input`` in the session's bucket, whole."""
    bucket = Bucket.open(s3.url, s3.settings)
    prepare.prepare(
        ["starter"],
        tokenizer=tokenizer.load("bytes"),
        out=bucket.child("data/bad-input"),
        options=prepare.PrepareOptions(overwrite=True),
    )
    return bucket


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["launch", "pretrian"], "no job 'pretrian' (did you mean 'pretrain'?)", "bafogpt cloud launch"),
        (["launch", "demo", "--set", "train.sed=1"], "unknown key 'train.sed' (did you mean 'seed'?)", "edit"),
        (["launch", "demo", "--set", "train.seed"], "not KEY=VALUE", "--set"),
        (["launch", "demo", "--gpus", "L40:four"], "--gpus L40:four: not NAME or NAME:COUNT", "--gpus L40:4"),
        (["launch", "demo", "--name", "Not/Good"], "cannot be a run's name", "--name"),
        (["launch", "demo", "--env", "TOKEN=planted"], "--env", "export TOKEN"),
        (["lanch", "demo"], "launch", "--help"),
        (["launch", "demo", "--gpsu", "L40"], "--gpus", "--help"),
    ],
)
def test_wrong_words(bafogpt: Command, tmp_path: Path, words: list[str], message: str, hint: str):
    ended = bafogpt("cloud", *words)
    says(ended, ExitCode.USAGE, message, hint)
    assert "planted" not in ended.err
    assert not (tmp_path / "home" / "runs").exists()


def test_an_unknown_key_in_a_job_file(bafogpt: Command, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("train: {tokens: 1024, data: {path: x}, optimzer: {}}\n")
    ended = bafogpt("cloud", "launch", str(tmp_path / "mine.yaml"))
    says(ended, ExitCode.USAGE, "unknown key 'train.optimzer' (did you mean 'optimizer'?)", "mine.yaml")


def test_no_such_bucket(bafogpt: Command):
    ended = bafogpt("job", "run", "demo", *SET, BAFOGPT_BUCKET="s3://nobody-made-this")
    says(ended, ExitCode.FAILURE, "no bucket 'nobody-made-this'", "bafogpt config show")


def test_wrong_credentials(bafogpt: Command):
    ended = bafogpt("job", "run", "demo", *SET, AWS_SECRET_ACCESS_KEY="planted-secret")
    says(ended, ExitCode.AUTH, "access refused", "AWS_ACCESS_KEY_ID")
    assert "planted-secret" not in ended.err + ended.out


def test_no_dataset(bafogpt: Command):
    ended = bafogpt("job", "run", "demo", *SET, "--set", "train.data.path=data/nothing")
    says(ended, ExitCode.FAILURE, "no dataset at", "bafogpt data prepare")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("news.jsonl", b"", "no text"),
        ("news.jsonl", b'{"text": "sawubona"}\nnot json\n', "news.jsonl:2"),
        ("news.jsonl", b'{"text": "sawubona"}\n{"text": "\xff\xfe"}\n', "news.jsonl:2"),
        ("news.txt", b"sawubona \xff\xfe", "not UTF-8"),
        ("news.jsonl", b'{"txt": "sawubona"}\n', "news.jsonl:1"),
    ],
)
def test_bad_text(bafogpt: Command, tmp_path: Path, s3: S3, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    out = f"data/{tmp_path.name.lower()}"
    ended = bafogpt("data", "prepare", str(tmp_path / name), "--tokenizer", "bytes", "--out", out)
    assert ended.code == ExitCode.FAILURE, ended
    assert message in ended.last[0]
    assert ended.last[1].startswith(" hint: ")
    assert not Bucket.open(s3.url, s3.settings).exists(f"{out}/{manifest.MANIFEST}")


def test_a_corrupt_byte_in_a_shard_names_it_and_a_repaired_shard_lets_the_run_go_on(bafogpt: Command, dataset: Bucket):
    data = dataset.child("data/bad-input")
    shard = manifest.load(data).splits["train"].shards[0]
    good = data.get(shard.object)
    data.put(shard.object, good[:100] + bytes([good[100] ^ 1]) + good[101:])
    run = ("job", "run", "demo", "--run", "corrupt-shard", *SET, "--set", "supervisor.max_restarts=0")
    ended = bafogpt(*run)
    says(ended, ExitCode.JOB_FAILED, f"{shard.name} bytes 0-", "bafogpt cloud logs corrupt-shard")
    data.put(shard.object, good)
    assert bafogpt(*run).code == ExitCode.OK


def test_a_checkpoint_of_another_model(bafogpt: Command, dataset: Bucket):
    run = ("job", "run", "demo", "--run", "other-model", *SET)
    half = bafogpt(*run)
    assert half.code == ExitCode.OK, half
    weights = ("--set", "train.model.checkpoint=runs/other-model", "--set", "train.model.overrides.n_embd=64")
    ended = bafogpt("job", "run", "demo", "--run", "bigger-model", *SET, *weights)
    words = "model.overrides.n_embd is 64, and runs/other-model/checkpoints/step-00000004 has 32"
    says(ended, ExitCode.USAGE, words, "leave model.name and model.overrides out")
    same = bafogpt("job", "run", "demo", "--run", "same-model", *SET, *weights[:2])
    assert same.code == ExitCode.OK, same


def test_a_port_that_is_taken(bafogpt: Command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = bafogpt(
            "storage", "serve", "--port", port, BAFOGPT_BUCKET="s3://bafogpt", BAFOGPT_S3_ENDPOINT="embedded"
        )
    says(ended, ExitCode.FAILURE, f"port {port}", "--port")


def test_a_second_launch_with_the_same_name(bafogpt: Command, dataset: Bucket):
    launch = ("cloud", "launch", "demo", "--name", "twice", *SET)
    assert bafogpt(*launch, "--detach", "-q").out == "twice\n"
    second = bafogpt(*launch)
    assert second.code == ExitCode.FAILURE
    assert "run twice" in second.last[0]
    followed = bafogpt("cloud", "logs", "-f", "twice")
    assert "twice: succeeded" in followed.out  # the first was not disturbed
    says(bafogpt(*launch), ExitCode.FAILURE, "run twice exists already (succeeded)", "--resume")


def test_unknown_runs(bafogpt: Command, tmp_path: Path):
    asked = bafogpt("cloud", "status", "nobody", HOME=str(tmp_path))  # where SkyPilot is in use, it would be asked
    says(asked, ExitCode.JOB_NOT_FOUND, "no run 'nobody'", "bafogpt cloud ls")
    says(bafogpt("runs", "show", "nobody"), ExitCode.JOB_NOT_FOUND, "no run 'nobody'", "bafogpt runs ls")


def test_a_rented_machine_is_asked_for_only_with_a_yes_and_a_bucket_that_it_can_see(bafogpt: Command):
    unasked = bafogpt("cloud", "launch", "demo", "--infra", "runpod", BAFOGPT_BUCKET="s3://b")
    says(unasked, ExitCode.USAGE, "no terminal to ask on", "--yes")
    hidden = bafogpt("cloud", "launch", "demo", "--infra", "runpod", "--yes", BAFOGPT_BUCKET="file:///tmp/b")
    says(hidden, ExitCode.USAGE, "is a folder on this machine", "--bucket s3://NAME")
