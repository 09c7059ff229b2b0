"""The small programs of docker/, without an image."""

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


def test_an_extra_that_names_another_brings_its_dependencies() -> None:
    project = {
        "name": "x",
        "dependencies": ["numpy"],
        "optional-dependencies": {"train": ["torch"], "gpu": ["x[train]", "bits"], "dev": ["pytest"]},
    }

    assert part("requirements").requirements(project, ["gpu"]) == ["bits", "numpy", "torch"]


def test_an_extra_that_does_not_exist_is_named() -> None:
    with pytest.raises(SystemExit, match="no extra 'gpus'; there are: gpu"):
        part("requirements").requirements({"name": "x", "optional-dependencies": {"gpu": []}}, ["gpus"])


def test_the_environment_speaks_before_the_files() -> None:
    listing = "\n".join(
        (
            ":env:.default-timeout='180'",
            ":env:.cert='/env.pem'",
            "global.cert='/global.pem'",
            "global.index-url='https://user:secret@index.example/simple'",
            "freeze.timeout='9'",
        )
    )

    known = part("pip_settings").parse(listing)

    assert known == {
        "timeout": "180",
        "cert": "/env.pem",
        "index-url": "https://user:secret@index.example/simple",
    }


def test_a_build_gets_addresses_and_no_folder_of_this_machine() -> None:
    known = {
        "index-url": "https://index.example/simple",
        "extra-index-url": "file:///here https://b.example/s",
        "cert": "x",
    }

    lines = part("pip_settings").pip_conf(known, trusts=True).splitlines()

    assert "index-url = https://index.example/simple" in lines
    assert "extra-index-url = https://b.example/s" in lines
    assert "cert = /run/ca.pem" in lines
    assert not any("file:" in line or "find-links" in line for line in lines)


def test_only_pinned_wheels_are_handed_to_a_build(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "handed"
    wheels.mkdir()
    for name in (
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64",
        "torch-2.12.0-cp311-cp311-linux_x86_64",
        "odd-1-py3-none-any",
    ):
        (wheels / f"{name}.whl").write_bytes(b"x")
    parts = part("pip_settings")

    parts.stage_wheels({"find-links": f"{wheels} /not/there"}, parts.pinned("# no==1\ntorch==2.13.0\n"), target)

    assert [each.name for each in target.iterdir()] == ["torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"]


def test_a_debian_licence_is_read_from_its_fields_else_from_what_it_refers_to(tmp_path: Path) -> None:
    files = {
        "fields": "Files: *\nLicense: MIT\n text\nFiles: debian/*\nLicense: GPL-2+\n",
        "prose": "... on Debian systems in /usr/share/common-licenses/GPL-3.\n",
        "odd": "Do as you like.\n",
    }
    for name, text in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "copyright").write_text(text)
    licence = part("licences").debian_licence

    assert licence("fields", tmp_path) == "GPL-2+, MIT"
    assert licence("prose", tmp_path) == "GPL-3"
    assert licence("odd", tmp_path) == "see its copyright file"
    assert licence("missing", tmp_path) == "no copyright file"
