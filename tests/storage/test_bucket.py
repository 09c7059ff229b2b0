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
def test_an_object_is_found_under_its_name(anywhere: Bucket, name: str) -> None:
    anywhere.put(name, b"some bytes")

    assert anywhere.get(name) == b"some bytes"
    assert anywhere.exists(name)
    (info,) = anywhere.list()
    assert (info.path, info.bytes) == (name, 10)
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
    assert anywhere.info(name) == info


def test_put_overwrites_unless_create_only(anywhere: Bucket) -> None:
    anywhere.put("x", b"first", create_only=True)
    with pytest.raises(ConflictError, match="x exists already"):
        anywhere.put("x", b"second", create_only=True)
    assert anywhere.get("x") == b"first"
    anywhere.put("x", b"third")
    assert anywhere.get("x") == b"third"


def test_a_range_is_exact_or_corrupt(anywhere: Bucket) -> None:
    anywhere.put("x", bytes(range(100)))
    assert anywhere.get_range("x", 10, 5) == bytes(range(10, 15))
    assert anywhere.get_range("x", 0, 100) == bytes(range(100))
    assert anywhere.get_range("x", 7, 0) == b""
    for start, length in ((90, 20), (100, 1), (500, 1)):
        with pytest.raises(CorruptError, match="/x"):
            anywhere.get_range("x", start, length)


def test_missing_objects_are_not_found(anywhere: Bucket) -> None:
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


def test_deleting_an_object_or_a_folder_leaves_all_others(anywhere: Bucket) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "x"):
        anywhere.put(name, b"")
    for _ in range(2):
        anywhere.delete("x")
        assert not anywhere.exists("x")
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
    with pytest.raises(UsageError, match="is not a path below"):
        anywhere.put(name, b"")
    with pytest.raises(UsageError):
        anywhere.child(name)


@pytest.mark.parametrize("url", ["bafogpt", "http://x/y", "s3://", "s3://UPPER", "s3://ab", "file://host/x", "file:x"])
def test_other_urls_are_refused(url: str) -> None:
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


@pytest.fixture
def remote(s3: S3) -> Settings:
    """The session's server by its URL, so that keys come from the environment."""
    return dataclasses.replace(s3.settings, s3_endpoint=s3.environment["AWS_ENDPOINT_URL"])


def set_keys(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


@pytest.mark.parametrize("where", ["environment", "profile"])
def test_keys_of_the_environment_and_of_a_profile_are_used(
    s3: S3, remote: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    key, secret = s3.environment["AWS_ACCESS_KEY_ID"], s3.environment["AWS_SECRET_ACCESS_KEY"]
    if where == "environment":
        set_keys(monkeypatch, key, secret)
    else:
        (tmp_path / "keys").write_text(f"[work]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
        monkeypatch.setenv("AWS_PROFILE", "work")
    bucket = Bucket.open(s3.url, remote)
    bucket.check()
    bucket.create()


def test_missing_keys_are_reported(s3: S3, remote: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = Bucket.open(s3.url, remote)
    for access in (bucket.check, bucket.list, bucket.create):
        with pytest.raises(AuthError, match="no S3 credentials"):
            access()


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_keys_are_an_auth_error_that_does_not_print_them(
    s3: S3, remote: Settings, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    key = "ABCDEFGHWRONG" if wrong == "key" else s3.environment["AWS_ACCESS_KEY_ID"]
    set_keys(monkeypatch, key, "a-wrong-secret")
    refused, new = Bucket.open(s3.url, remote), Bucket.open("s3://another-bucket", remote)
    accesses = (lambda: refused.get("x"), lambda: refused.info("x"), lambda: refused.put("x", b""), refused.list)
    for access in (*accesses, refused.check, new.create):
        with pytest.raises(AuthError) as raised:
            access()
        assert "a-wrong-secret" not in str(raised.value)
        assert key not in str(raised.value)


def test_an_unreachable_and_a_silent_server_are_reported_in_time(
    s3: S3, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    set_keys(monkeypatch, "K", "S")
    gone = Bucket.open(s3.url, Settings(s3_endpoint="http://127.0.0.1:9", s3_timeout_s=0.3))
    for access in (lambda: gone.get("x"), lambda: gone.put("x", b""), gone.list, gone.check, gone.create):
        with pytest.raises(UnreachableError) as raised:
            access()
        assert raised.value.hint
    silent = Bucket.open(s3.url, Settings(s3_endpoint=f"http://127.0.0.1:{silent_port}", s3_timeout_s=0.3))
    with pytest.raises(UnreachableError, match="no answer in time"):
        silent.get("x")


def test_neither_a_proxy_nor_an_endpoint_of_the_environment_is_used_for_the_own_server(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
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
