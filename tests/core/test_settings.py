"""Who wins: flag, environment, project file, user file, default."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.core import settings
from bafogpt.core.errors import ConfigError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(project folder, user folder), both empty, and an environment that says nothing."""
    for name in ("BAFOGPT_BUCKET", "BAFOGPT_S3_ENDPOINT", "BAFOGPT_HOME", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    user, project = tmp_path / "user", tmp_path / "project"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))
    (user / "bafogpt").mkdir(parents=True)
    project.mkdir()
    return project, user


def source_of(name: str, cwd: Path, flags: dict[str, object] | None = None) -> tuple[object, str]:
    found = next(origin for origin in settings.origins(flags, cwd) if origin.name == name)
    return found.value, found.source


def test_each_layer_beats_the_one_below(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    project, user = places
    assert source_of("bucket", project) == ("s3://bafogpt", "default")
    (user / "bafogpt" / "config.toml").write_text('bucket = "s3://of-the-user"')
    assert source_of("bucket", project)[0] == "s3://of-the-user"
    (project / "bafogpt.toml").write_text('bucket = "s3://of-the-project"')
    assert source_of("bucket", project)[0] == "s3://of-the-project"
    monkeypatch.setenv("BAFOGPT_BUCKET", "s3://of-the-environment")
    assert source_of("bucket", project) == ("s3://of-the-environment", "environment BAFOGPT_BUCKET")
    assert source_of("bucket", project, {"bucket": "s3://of-the-flag"}) == ("s3://of-the-flag", "flag")
    assert source_of("bucket", project, {"bucket": None})[1] == "environment BAFOGPT_BUCKET"


def test_a_project_file_is_found_from_a_folder_below(places: tuple[Path, Path]):
    project, _ = places
    (project / "pyproject.toml").write_text("[tool.bafogpt]\nzar_per_usd = 17.5\n")
    below = project / "a" / "b"
    below.mkdir(parents=True)
    assert settings.load(cwd=below).zar_per_usd == 17.5


def test_the_embedded_server_is_the_default_until_a_bucket_is_named(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    project, _ = places
    assert settings.load(cwd=project).s3_endpoint == settings.EMBEDDED
    assert settings.load({"bucket": "s3://mine"}, cwd=project).s3_endpoint == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert settings.load(cwd=project).s3_endpoint == "http://127.0.0.1:9000"
    monkeypatch.setenv("BAFOGPT_S3_ENDPOINT", "http://127.0.0.1:9001")
    assert settings.load(cwd=project).s3_endpoint == "http://127.0.0.1:9001"


def test_an_unknown_setting_is_refused_with_the_nearest(places: tuple[Path, Path]):
    project, _ = places
    (project / "bafogpt.toml").write_text('buckt = "s3://x"')
    with pytest.raises(ConfigError, match=r"bafogpt\.toml.*buckt.*did you mean 'bucket'"):
        settings.load(cwd=project)


def test_a_setting_of_the_wrong_type_is_refused(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BAFOGPT_ZAR_PER_USD", "many")
    with pytest.raises(ConfigError, match="zar_per_usd"):
        settings.load(cwd=places[0])
