"""``bafogpt storage push|pull|verify|du|gc`` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bafogpt.cli.main import main
from bafogpt.core.errors import AuthError, ExitCode, UsageError
from bafogpt.folders import sync
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import files as embedded
from bafogpt.storage.embedded import server
from bafogpt.storage.transfer import bandwidth

if TYPE_CHECKING:
    from tests.conftest import S3


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def says(self, code: int, message: str, hint: str) -> None:
        error, next_step = self.err.strip().splitlines()[-2:]
        assert self.code == code, self
        assert error.startswith("error: ")
        assert message in error
        assert next_step.startswith(" hint: ")
        assert hint in next_step


Run = Callable[..., Ran]


@pytest.fixture
def run(s3: S3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("push", …)`` in a folder of the test's own, on the session's server."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def command(*words: str | Path) -> Ran:
        code = main(["storage", *map(str, words)])
        shown = capsys.readouterr()
        return Ran(code, shown.out, shown.err)

    return command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"w" * 100_000)
    (folder / "config.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def place(s3: S3, bucket: Bucket) -> str:
    """A folder of the bucket, as a path below the settings' one."""
    return bucket.url.removeprefix(f"{s3.url}/")


def test_there_and_back_by_paths(run: Run, model: Path, place: str, bucket: Bucket, tmp_path: Path):
    pushed = run("push", "model", f"{place}/m")
    assert pushed.code == 0, pushed.err
    assert pushed.out.startswith(f"{bucket.url}/m: 2 files, 0.1 MB; sent 2 (0.1 MB)")
    assert run("pull", f"{place}/m", "back", "--quiet").out == f"file://{tmp_path}/back\n"
    assert (tmp_path / "back" / "weights.bin").read_bytes() == (model / "weights.bin").read_bytes()
    assert run("verify", f"{place}/m").out == f"{bucket.url}/m: 1 model: 0.1 MB, verified\n"
    assert run("verify", "./back").code == 0
    assert run("ls", "./model", "--quiet").out.split() == ["config.json", "weights.bin"]


def test_a_report_as_json(run: Run, model: Path, place: str, bucket: Bucket):
    record = json.loads(run("push", "model", f"{place}/m", "--json").out)
    assert record.pop("seconds") >= 0
    assert record == {
        "source": f"file://{model}",
        "target": f"{bucket.url}/m",
        "files": 2,
        "bytes": 100_002,
        "sent_files": 2,
        "sent_bytes": 100_002,
        "verified_by": "the hash of what arrived, or reading it back",
        "commit": "",
    }


def test_a_dry_run_shows_and_sends_nothing(run: Run, model: Path, place: str, bucket: Bucket):
    run("push", "model", f"{place}/m")
    (model / "config.json").write_bytes(b"[]")
    shown = run("push", "model", f"{place}/m", "--dry-run", "--json")
    assert [json.loads(line)["action"] for line in shown.out.splitlines()] == ["send", "keep"]
    assert f"1 of 2 files, 0.0 MB, would go to {bucket.url}/m" in shown.err
    assert bucket.get("m/config.json") == b"{}"
    assert run("push", "model", f"{place}/new", "--dry-run").code == 0
    assert bucket.list("new") == []


def test_the_bandwidth_is_bounded(run: Run, model: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    original = bandwidth.Bandwidth.__init__

    def record(self: bandwidth.Bandwidth, rate: float) -> None:
        asked.append(rate)
        original(self, rate, sleep=lambda seconds: asked.append(seconds))

    monkeypatch.setattr(bandwidth.Bandwidth, "__init__", record)
    assert run("push", "model", f"{place}/m", "--max-bandwidth", "50k").code == 0
    assert asked[0] == 50_000
    assert sum(asked[1:]) >= 100_002 / 50_000 - 0.1


@pytest.mark.parametrize(
    ("text", "rate"), [("5M", 5e6), ("500k", 5e5), ("1.5G", 1.5e9), ("10MB/s", 1e7), ("300", 300.0)]
)
def test_rates(text: str, rate: float):
    assert bandwidth.parse(text) == rate
    for wrong in ("fast", "0", "-1M", "5 M", "5T"):
        with pytest.raises(UsageError, match="not a rate"):
            bandwidth.parse(wrong)


def test_verify_names_the_damaged_objects_and_exits_1(run: Run, model: Path, place: str, bucket: Bucket):
    run("push", "model", f"{place}/m")
    bucket.put("m/weights.bin", b"x" * 100_000)
    ran = run("verify", f"{place}/m")
    assert ran.out == f"{bucket.url}/m/weights.bin does not match its hash\n"
    ran.says(ExitCode.FAILURE, "1 problem", "verify it again")
    assert json.loads(run("verify", f"{place}/m", "--json").out)["problem"].startswith(bucket.url)


def test_gc_shows_and_only_with_yes_removes(run: Run, model: Path, place: str, bucket: Bucket):
    run("push", "model", f"{place}/m")
    bucket.put("m/orphan", b"x")
    assert "nothing to remove" in run("gc", place).err
    shown = run("gc", place, "--older-than", "0s")
    assert "m/orphan" in shown.out
    assert "1 objects, 0.0 MB would be removed; --yes removes them" in shown.err
    assert run("gc", place, "--older-than", "0s", "--yes", "--dry-run").code == 0
    assert bucket.exists("m/orphan")
    assert run("gc", place, "--older-than", "0s", "--yes", "--quiet").out == "m/orphan\n"
    assert not bucket.exists("m/orphan")


def test_du_shows_each_folder_and_the_total(run: Run, model: Path, place: str, bucket: Bucket):
    run("push", "model", f"{place}/models/m")
    bucket.put("runs/r/run.json", b"{}")
    lines = run("du", place).out.splitlines()
    assert [line.split()[-1] for line in lines] == ["FOLDER", "models", "runs", "total"]
    records = [json.loads(line) for line in run("du", place, "--json", "--depth", "2").out.splitlines()]
    assert [each["folder"] for each in records] == ["models/m", "runs/r"]
    assert records[1]["bytes"] == 2


def test_credentials_that_expire_during_a_push_lose_nothing(
    run: Run, model: Path, place: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    original = sync._move

    def expire(listing: Any, entry: Any, *rest: Any) -> Any:
        if entry.name == "weights.bin":
            raise AuthError("access refused (ExpiredToken)", "export AWS_…")
        return original(listing, entry, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "_move", expire)
        run("push", "model", f"{place}/m").says(ExitCode.AUTH, "ExpiredToken", "AWS_")
    run("pull", f"{place}/m", "back").says(ExitCode.FAILURE, "is unfinished", "repeat that command")
    assert json.loads(run("push", "model", f"{place}/m", "--json").out)["sent_files"] == 1
    assert run("verify", f"{place}/m").code == 0


def test_keys_that_may_only_read_can_pull_and_not_push(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    folder = embedded.ServerFolder(home)
    folder.prepare()
    people = [("owner", "OWNER", ["Admin"]), ("reader", "READER", ["Read", "List"])]
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": f"{key}-secret"}], "actions": actions}
        for name, key, actions in people
    ]
    folder.identities.write_text(json.dumps({"identities": identities}))
    with server.lease(home) as lease:

        def become(key: str) -> None:
            keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": f"{key}-secret"}
            here = {"AWS_ENDPOINT_URL": lease.endpoint.url, "BAFOGPT_S3_ENDPOINT": lease.endpoint.url}
            for name, value in {**keys, **here}.items():
                monkeypatch.setenv(name, value)

        become("OWNER")
        Bucket.open("s3://owned").create()
        assert run("push", "model", "s3://owned/m").code == 0
        become("READER")
        assert run("pull", "s3://owned/m", "back").code == 0
        (model / "config.json").write_bytes(b"[]")
        ran = run("push", "model", "s3://owned/m")
        ran.says(ExitCode.AUTH, "access refused", "AWS_ACCESS_KEY_ID")
        assert "READER-secret" not in ran.out + ran.err
        assert run("verify", "s3://owned/m").code == 0, "nothing was lost"


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (("push", "./nothing-here", "m"), ExitCode.FAILURE, "does not exist", "ls -d"),
        (("push", "nothing-here", "./m"), ExitCode.FAILURE, "nothing below s3://", "bafogpt storage ls"),
        (("pull", "s3://nobody-made-this/m", "x"), ExitCode.FAILURE, "no bucket", "bafogpt config show"),
        (("push", "model", "gs://m"), ExitCode.USAGE, "is not a bucket", "write s3://"),
        (("push", "model", "./model"), ExitCode.USAGE, "source and target", "give two different folders"),
        (("push", "model", "m", "--max-bandwidth=5T"), ExitCode.USAGE, "not a rate", "--max-bandwidth 5M"),
        (("gc", "m", "--older-than", "soon"), ExitCode.USAGE, "not an age", "--older-than 24h"),
        (("pull", "model"), ExitCode.USAGE, "DST", "--help"),
    ],
)
def test_a_usage_error_is_two_lines(run: Run, model: Path, words: tuple[str, ...], code: int, message: str, hint: str):
    run(*words).says(code, message, hint)
