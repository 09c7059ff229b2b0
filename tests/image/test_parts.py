"""The programs of docker/, without an image."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest

from tests.image.conftest import ROOT


def part(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docker" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_extra_that_names_another_includes_its_dependencies() -> None:
    extras = {"train": ["torch"], "gpu": ["x[train]", "bits"], "dev": ["pytest"]}
    project = {"name": "x", "dependencies": ["numpy"], "optional-dependencies": extras}

    assert part("requirements").requirements(project, ["gpu"]) == ["bits", "numpy", "torch"]
    with pytest.raises(SystemExit, match="no extra 'gpus'; there are: dev, gpu, train"):
        part("requirements").requirements(project, ["gpus"])


def test_settings_of_the_environment_win_over_those_of_files() -> None:
    listing = """\
:env:.default-timeout='180'
:env:.cert='/env.pem'
global.cert='/global.pem'
global.index-url='https://user:secret@index.example/simple'
freeze.timeout='9'"""

    assert part("pip_settings").parse(listing) == {
        "timeout": "180",
        "cert": "/env.pem",
        "index-url": "https://user:secret@index.example/simple",
    }


def test_a_build_gets_addresses_and_no_local_folder() -> None:
    known = {
        "index-url": "https://index.example/simple",
        "extra-index-url": "file:///here https://b.example/s",
        "cert": "x",
    }

    lines = part("pip_settings").pip_conf(known, trusts=True).splitlines()

    assert {
        "index-url = https://index.example/simple",
        "extra-index-url = https://b.example/s",
        "cert = /run/ca.pem",
    } <= set(lines)
    assert not any("file:" in line or "find-links" in line for line in lines)


def test_only_pinned_wheels_are_passed_to_a_build(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "handed"
    wheels.mkdir()
    pinned, other, unknown = (
        wheels / f"{name}.whl"
        for name in ("torch-2.13.0+cpu-cp311-cp311-linux_x86_64", "torch-2.12.0-cp311-none-any", "odd-1-py3-none-any")
    )
    for wheel in (pinned, other, unknown):
        wheel.touch()
    parts = part("pip_settings")

    parts.stage_wheels({"find-links": f"{wheels} /not/there"}, parts.pinned("# no==1\ntorch==2.13.0\n"), target)

    assert [each.name for each in target.iterdir()] == [pinned.name]


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Files: *\nLicense: MIT\n text\nFiles: debian/*\nLicense: GPL-2+\n", "GPL-2+, MIT"),
        ("... on Debian systems in /usr/share/common-licenses/GPL-3.\n", "GPL-3"),
        ("Do as you like.\n", "see its copyright file"),
        (None, "no copyright file"),
    ],
)
def test_a_debian_licence_is_read_from_its_fields_or_its_references(
    tmp_path: Path, text: str | None, licence: str
) -> None:
    (tmp_path / "package").mkdir()
    if text:
        (tmp_path / "package" / "copyright").write_text(text)

    assert part("licences").debian_licence("package", tmp_path) == licence
