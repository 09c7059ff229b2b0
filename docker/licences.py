#!/usr/bin/env python3
"""List the packages of this image with their licences. Runs in the image, standard library only.

Debian packages from dpkg and the machine-readable part of ``/usr/share/doc/NAME/copyright``, Python packages from
their metadata (``License-Expression``, else classifiers, else the first line of ``License``).
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNKNOWN = "see its copyright file"
COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])")
FIELD = re.compile(r"^License:[ \t]*(\S.*)$", re.MULTILINE)


def debian_licence(name: str, docs: Path = Path("/usr/share/doc")) -> str:
    """The licences of a Debian package: the ``License:`` fields of its copyright file, or those it refers to."""
    path = docs / name / "copyright"
    if not path.exists():
        return "no copyright file"
    text = path.read_text(encoding="utf-8", errors="replace")
    found = [each.strip() for each in FIELD.findall(text)] or COMMON.findall(text)
    return ", ".join(sorted(set(found))) or UNKNOWN


def debian() -> list[str]:
    form = "${db:Status-Status} ${Package} ${Version}\n"
    listing = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
    rows = sorted({tuple(line.split(" ")[1:]) for line in listing.splitlines() if line.startswith("installed ")})
    return [f"{name} {version}: {debian_licence(name)}" for name, version in rows]


def python_licence(distribution: Distribution) -> str:
    """The licence of a Python package from its metadata."""
    meta = distribution.metadata
    if meta["License-Expression"]:
        return str(meta["License-Expression"])
    trove = [each.split(" :: ")[-1] for each in meta.get_all("Classifier") or () if each.startswith("License :: ")]
    named = [each for each in trove if each != "OSI Approved"]
    if named:
        return ", ".join(named)
    lines = (meta["License"] or "").strip().splitlines()
    return lines[0].strip() if lines else "not stated in its metadata"


def python() -> list[str]:
    rows = {(each.metadata["Name"].lower(), each.version, python_licence(each)) for each in distributions()}
    return [f"{name} {version}: {licence}" for name, version, licence in sorted(rows)]


def main() -> None:
    print("The packages of this image, and the licence that each one states.")
    for title, rows in (("Python packages", python()), ("Distribution packages", debian())):
        print(f"\n{title} ({len(rows)})\n")
        print("\n".join(rows))


if __name__ == "__main__":
    main()
