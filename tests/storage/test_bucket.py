from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bafogpt.core.errors import (
    AuthError,
    BafoError,
    ConfigError,
    ConflictError,
    CorruptError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from bafogpt.core.settings import Settings
from bafogpt.storage import bucket as bucket_module
from bafogpt.storage.bucket import Bucket

if TYPE_CHECKING:
    from tests.conftest import S3

NAMES = ["a", "deep/er/file.bin", "a b+c", "é–ŋ", "50%20#x", "plus+and&"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_put_is_there_under_its_name(anywhere: Bucket, name: str) -> None:
    anywhere.put(name, b"some bytes")

    assert anywhere.get(name) == b"some bytes"
    assert anywhere.exists(name)
    (info,) = anywhere.list()
    assert (info.path, info.bytes) == (name, 10)
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
    assert anywhere.info(name) == info


def test_an_object_can_be_written_again(anywhere: Bucket) -> None:
    anywhere.put("x", b"old")
    anywhere.put("x", b"new")
    assert anywhere.get("x") == b"new"


def test_create_only_refuses_what_exists_and_leaves_it(anywhere: Bucket) -> None:
    anywhere.put("x", b"first", create_only=True)
    with pytest.raises(ConflictError, match="x exists already"):
        anywhere.put("x", b"second", create_only=True)
    assert anywhere.get("x") == b"first"


def test_a_range_is_exactly_what_was_asked_for(anywhere: Bucket) -> None:
    anywhere.put("x", bytes(range(100)))
    assert anywhere.get_range("x", 10, 5) == bytes(range(10, 15))
    assert anywhere.get_range("x", 0, 100) == bytes(range(100))
    assert anywhere.get_range("x", 7, 0) == b""


@pytest.mark.parametrize(("start", "length"), [(90, 20), (100, 1), (500, 1)])
def test_a_range_past_the_end_is_corrupt(anywhere: Bucket, start: int, length: int) -> None:
    anywhere.put("x", bytes(100))
    with pytest.raises(CorruptError, match="/x"):
        anywhere.get_range("x", start, length)


def test_what_is_not_there_is_not_found(anywhere: Bucket) -> None:
    for access in (
        lambda: anywhere.get("no/such"),
        lambda: anywhere.get_range("no/such", 0, 1),
        lambda: anywhere.info("no/such"),
    ):
        with pytest.raises(NotFoundError, match="no/such does not exist"):
            access()
    assert not anywhere.exists("no/such")
    assert anywhere.list("no/such") == []
    assert list(anywhere.folders("no/such")) == []


def test_lists_are_relative_sorted_and_by_whole_names(anywhere: Bucket) -> None:
    for name in ("runs/b/1", "runs/a/2", "runs/a/1", "runs-2/x", "top"):
        anywhere.put(name, b"")
    assert [info.path for info in anywhere.list("runs")] == ["runs/a/1", "runs/a/2", "runs/b/1"]
    assert [info.path for info in anywhere.list("runs/a/")] == ["runs/a/1", "runs/a/2"]
    assert anywhere.folders() == ["runs", "runs-2"]
    assert anywhere.folders("runs") == ["a", "b"]


def test_a_child_sees_only_its_folder(anywhere: Bucket) -> None:
    child = anywhere.child("runs/a/")
    child.put("x", b"1")
    anywhere.put("runs/b", b"2")
    assert child.url == f"{anywhere.url}/runs/a"
    assert [info.path for info in child.list()] == ["x"]
    assert anywhere.get("runs/a/x") == b"1"
    assert child.child("y").url.endswith("/runs/a/y")


def test_deleting_twice_is_fine(anywhere: Bucket) -> None:
    anywhere.put("x", b"1")
    anywhere.delete("x")
    anywhere.delete("x")
    assert not anywhere.exists("x")


def test_delete_tree_takes_the_folder_and_nothing_else(anywhere: Bucket) -> None:
    for name in ("a/1", "a/b/2", "ab/3"):
        anywhere.put(name, b"")
    assert anywhere.delete_tree("a") == 2
    assert [info.path for info in anywhere.list()] == ["ab/3"]
    assert anywhere.delete_tree("a") == 0


@pytest.mark.parametrize("size", [0, 1000, (6 << 20) + 1])
def test_files_are_sent_whole_in_one_part_or_many(
    anywhere: Bucket, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 << 20)  # the least that S3 takes; the last size makes two
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    anywhere.upload("x", tmp_path / "file")
    assert b"".join(anywhere.chunks("x", chunk_bytes=100_000)) == content


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "a\0b", "."])
def test_names_cannot_leave_the_folder(anywhere: Bucket, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name below"):
        anywhere.put(name, b"")
    with pytest.raises(UsageError):
        anywhere.child(name)


@pytest.mark.parametrize("url", ["bafogpt", "http://x/y", "s3://", "s3://UPPER", "s3://ab", "file://host/x", "file:x"])
def test_what_is_not_a_buckets_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a bucket"):
        Bucket.open(url, Settings())


def test_create_and_check(s3: S3, tmp_path: Path) -> None:
    for url in ("s3://made-by-a-test", f"file://{tmp_path}/new"):
        made = Bucket.open(f"{url}", s3.settings)
        with pytest.raises(NotFoundError):
            made.check()
        made.create()
        made.create()
        made.check()
        made.put("x", b"1")


def test_a_missing_bucket_is_named(s3: S3) -> None:
    missing = Bucket.open("s3://not-there/runs", s3.settings)
    for access in (lambda: missing.get("x"), lambda: missing.put("x", b""), missing.list, missing.check):
        with pytest.raises(NotFoundError, match="no bucket 'not-there'"):
            access()


def _with_keys(s3: S3, monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    return Bucket.open(s3.url, dataclasses.replace(s3.settings, s3_endpoint=endpoint))


def test_keys_of_the_environment_are_used(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = s3.environment
    with_keys = _with_keys(s3, monkeypatch, environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    with_keys.check()
    with_keys.create()


def test_keys_of_a_profile_are_used(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, secret = s3.environment["AWS_ACCESS_KEY_ID"], s3.environment["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "keys").write_text(f"[work]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    Bucket.open(s3.url, dataclasses.replace(s3.settings, s3_endpoint=endpoint)).check()


def test_no_keys_at_all_say_so(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    nobody = Bucket.open(s3.url, dataclasses.replace(s3.settings, s3_endpoint=endpoint))
    for access in (nobody.check, nobody.list, nobody.create):
        with pytest.raises(AuthError, match="no S3 credentials"):
            access()


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_keys_are_an_auth_error_that_does_not_print_them(
    s3: S3, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    key = "ABCDEFGHWRONG" if wrong == "key" else s3.environment["AWS_ACCESS_KEY_ID"]
    refused = _with_keys(s3, monkeypatch, key, "a-wrong-secret")
    for access in (
        lambda: refused.get("x"),
        lambda: refused.info("x"),
        lambda: refused.put("x", b""),
        refused.list,
        refused.check,
        Bucket.open(
            "s3://another-bucket", dataclasses.replace(s3.settings, s3_endpoint=s3.environment["AWS_ENDPOINT_URL"])
        ).create,
    ):
        with pytest.raises(AuthError) as raised:
            access()
        assert "a-wrong-secret" not in str(raised.value)
        assert key not in str(raised.value)


def test_a_server_that_is_gone_is_unreachable(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "K")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S")
    gone = Bucket.open(s3.url, Settings(s3_endpoint="http://127.0.0.1:9", s3_timeout_s=0.3))
    for access in (lambda: gone.get("x"), lambda: gone.put("x", b""), gone.list, gone.check, gone.create):
        with pytest.raises(UnreachableError) as raised:
            access()
        assert raised.value.hint


def test_a_server_that_says_nothing_is_unreachable_in_time(
    s3: S3, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "K")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S")
    silent = Bucket.open(s3.url, Settings(s3_endpoint=f"http://127.0.0.1:{silent_port}", s3_timeout_s=0.3))
    with pytest.raises(UnreachableError, match="no answer in time"):
        silent.get("x")


def test_a_proxy_of_the_environment_is_not_asked_for_the_own_machine(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    own = Bucket.open(s3.url, s3.settings)
    own.create()
    own.check()


def test_the_endpoint_of_the_settings_beats_that_of_the_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "somebody's")
    own = Bucket.open(s3.url, s3.settings)
    own.create()
    own.check()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    program = f"""
import resource, sys
from bafogpt.core.errors import DiskFullError
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Bucket.open("file://{tmp_path}", Settings()).put("x", bytes(5000))
except DiskFullError as error:
    sys.exit(42)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 42
    assert not (tmp_path / "x").exists()


def test_every_error_has_a_hint(folder: Bucket) -> None:
    with pytest.raises(BafoError) as raised:
        folder.get("nothing")
    assert raised.value.hint.startswith("bafogpt storage ls")
    assert "\n" not in raised.value.message


def test_importing_the_bucket_does_not_import_boto3() -> None:
    program = "import sys, bafogpt.storage.bucket; sys.exit('boto3' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
