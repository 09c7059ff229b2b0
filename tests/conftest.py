"""Shared by all tests: empty settings, one real S3 server for the session, and the distribution over workers."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import server

USER_VARIABLES = (
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "BAFOGPT_DEBUG",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_MODE",
    "MLFLOW_TRACKING_URI",
    *(f"BAFOGPT_{field.name.upper()}" for field in dataclasses.fields(Settings)),
)

SINGLETON_FOLDERS = ("image", "lab", "workflows")
"""Their tests share what a machine has only one of: the store of images, the labs and their ports."""


def group(nodeid: str) -> str:
    """The group of tests that one worker runs: those of the folders above, else those of a file."""
    file = nodeid.partition("::")[0]
    return "singleton" if file.split("/")[1] in SINGLETON_FOLDERS else file


class GroupScheduling(LoadScopeScheduling):
    """Distributes groups, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Replaces the scheduler of ``--dist``: workers take whole groups."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest group comes first; the order of the others stays."""
    items.sort(key=lambda item: group(item.nodeid) != "singleton")


@dataclass(frozen=True)
class S3:
    """The session's server: settings for this process, environment for others."""

    settings: Settings
    environment: dict[str, str]
    url: str


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and none of the variables that a user may have set."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "empty-home"))
    for name in USER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real SeaweedFS on the loopback address with an empty bucket, ``s3.url``."""
    home = tmp_path_factory.mktemp("s3-home")
    with server.lease(home) as lease:
        url = "s3://bafogpt-tests"
        settings = Settings(bucket=url, s3_endpoint=EMBEDDED, home=str(home), s3_timeout_s=10.0)
        Bucket.open(url, settings).create()
        own = {"BAFOGPT_BUCKET": url, "BAFOGPT_S3_ENDPOINT": lease.endpoint.url, "BAFOGPT_HOME": str(home)}
        yield S3(settings, lease.endpoint.environment() | own, url)


@pytest.fixture
def bucket(s3: S3) -> Bucket:
    """An empty folder of the session's bucket."""
    return Bucket.open(f"{s3.url}/{uuid.uuid4().hex}", s3.settings)


@pytest.fixture(scope="session")
def starter(s3: S3) -> Bucket:
    """The session's bucket with the starter corpus, as bytes, at ``data/starter``."""
    from bafogpt.data import prepare, tokenizer

    bucket = Bucket.open(s3.url, s3.settings)
    prepare.prepare(["starter"], tokenizer=tokenizer.load("bytes"), out=bucket.child("data/starter"))
    return bucket
