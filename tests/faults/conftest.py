"""A bench in the session's server: its own folder, and the dataset of the runs under test."""

from __future__ import annotations

from typing import Any

import pytest

from bafogpt.storage.bucket import Bucket

from .bench import Bench, write_dataset


@pytest.fixture(scope="module")
def bench(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A folder of the session's bucket as the bench's bucket; runs in it have names of their own."""
    home = tmp_path_factory.mktemp("faults")
    bucket = Bucket.open(f"{s3.url}/{home.name}", s3.settings)
    write_dataset(bucket, home / "dataset")
    environment = s3.environment | {"BAFOGPT_BUCKET": bucket.url}
    return Bench(home, bucket, s3.settings, environment, s3.environment["AWS_ENDPOINT_URL"])


@pytest.fixture(autouse=True)
def keys(isolated: None, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's keys, for what reaches it through a proxy."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
