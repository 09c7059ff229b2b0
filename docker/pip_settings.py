#!/usr/bin/env python3
"""Prepare this machine's pip settings for a build: ``pip_settings.py CONSTRAINTS FOLDER``.

Writes into ``FOLDER``: ``pip.conf`` (index, proxy, timeouts from ``pip config list``), ``ca.pem`` (pip's certificates;
empty for those of the image), ``wheels/`` (the pinned wheels of local ``find-links`` folders, linked or copied). The
build mounts all three and keeps none, because the address of an index may contain a password.

Standard library only, Python 3.9 or newer: it runs before anything is installed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HANDED_ON = ("index-url", "extra-index-url", "find-links", "proxy", "retries", "timeout", "trusted-host")
CA_IN_BUILD = "/run/ca.pem"
ADDRESS = re.compile(r"https?://\S+")


def settings() -> dict[str, str]:
    """pip's settings by name: environment over command over global settings."""
    for python in (sys.executable, "python3"):
        listing = subprocess.run(
            [python, "-m", "pip", "config", "list"], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if listing.returncode == 0:
            return parse(listing.stdout)
    # no pip here: its environment variables
    return {name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name[:4] == "PIP_"}


def parse(listing: str) -> dict[str, str]:
    """``pip config list`` as a mapping, from lines such as ``global.index-url='https://…'`` or ``:env:.cert='…'``."""
    order = ("global", "install", ":env:")
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(.*)", line)
        if match:
            section, name, quoted = match.groups()
            rank = order.index(section)
            if rank >= found.get(name, (-1, ""))[0]:
                found[name] = (rank, str(ast.literal_eval(quoted)))
    return {name.removeprefix("default-"): value for name, (_, value) in found.items()}


def pip_conf(known: dict[str, str], trusts: bool) -> str:
    """The ``pip.conf`` of the build, without paths of this machine."""
    lines = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    for name in HANDED_ON:
        value = known.get(name, "")
        if name in ("index-url", "extra-index-url", "find-links"):
            value = "\n    ".join(ADDRESS.findall(value))
        if value:
            lines.append(f"{name} = {value}")
    if trusts:
        lines.append(f"cert = {CA_IN_BUILD}")
    return "\n".join(lines) + "\n"


def pinned(constraints: str) -> set[tuple[str, str]]:
    """Name and version of each line ``name==version``."""
    return {
        (line.split("==")[0], line.split("==")[1]) for line in constraints.split() if re.fullmatch(r"[^#=]+==\S+", line)
    }


def stage_wheels(known: dict[str, str], pins: set[tuple[str, str]], target: Path) -> None:
    """Link or copy the pinned wheels (also local versions such as ``+cpu``) from local folders into ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for word in known.get("find-links", "").split():
        folder = Path(word.removeprefix("file://"))
        for wheel in sorted(folder.glob("*.whl")) if folder.is_dir() else ():
            name, version = wheel.name.split("-")[:2]
            if (re.sub(r"[-_.]+", "-", name).lower(), version.split("+")[0]) not in pins:
                continue
            try:
                os.link(wheel, target / wheel.name)
            except OSError:  # another file system
                shutil.copy2(wheel, target / wheel.name)


def main() -> None:
    constraints, folder = Path(sys.argv[1]), Path(sys.argv[2])
    known = settings()
    certificates = Path(known.get("cert", ""))
    trusts = certificates.is_file()
    (folder / "ca.pem").write_bytes(certificates.read_bytes() if trusts else b"")
    conf = folder / "pip.conf"
    conf.touch(mode=0o600)
    conf.write_text(pip_conf(known, trusts), encoding="utf-8")
    stage_wheels(known, pinned(constraints.read_text(encoding="utf-8")), folder / "wheels")


if __name__ == "__main__":
    main()
