"""``bafogpt config``."""

from __future__ import annotations

import json
from pathlib import Path

from bafogpt.core import settings


def test_show_tells_each_value_and_who_said_so(cli, monkeypatch):
    Path("bafogpt.toml").write_text('bucket = "s3://mine"\nzar_per_usd = 20\n')
    monkeypatch.setenv("BAFOGPT_BUCKET", "s3://other")

    ran = cli("config", "show", "--json")

    shown = {record["name"]: record for record in map(json.loads, ran.out.splitlines())}
    assert shown["bucket"] == {"name": "bucket", "value": "s3://other", "source": "environment BAFOGPT_BUCKET"}
    assert shown["zar_per_usd"]["value"] == 20
    assert shown["zar_per_usd"]["source"].endswith("bafogpt.toml")
    assert shown["infra"] == {"name": "infra", "value": "local", "source": "default"}
    assert len(shown) == len(settings.origins())


def test_show_is_a_table_for_people(cli):
    ran = cli("config", "show")

    assert ran.code == 0
    assert ran.out.splitlines()[0].split() == ["NAME", "VALUE", "SOURCE"]


def test_quiet_prints_the_names(cli):
    assert "bucket" in cli("config", "show", "-q").out.splitlines()


def test_an_unknown_setting_is_an_error_with_the_nearest_name(cli):
    Path("bafogpt.toml").write_text('buckt = "s3://mine"\n')

    ran = cli("config", "show")

    assert ran.code == 2
    assert "unknown key 'buckt' (did you mean 'bucket'?)" in ran.err


def test_a_setting_of_the_wrong_type_is_not_shown_as_if_it_were_in_force(cli, monkeypatch):
    monkeypatch.setenv("BAFOGPT_ZAR_PER_USD", "many")

    ran = cli("config", "show")

    assert (ran.code, ran.out) == (2, "")
    assert "zar_per_usd" in ran.err


def test_path_is_the_file_that_is_read(cli):
    path = Path(cli("config", "path").out.strip())
    path.parent.mkdir(parents=True)
    path.write_text('infra = "runpod"\n')

    assert settings.load().infra == "runpod"


def test_path_follows_xdg(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "etc"))

    assert cli("config", "path").out == f"{tmp_path}/etc/bafogpt/config.toml\n"
