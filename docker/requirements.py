#!/usr/bin/env python3
"""Print the dependencies of a project and of some extras, one a line: ``requirements.py pyproject.toml EXTRA…``.

Standard library only: it runs in the image before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The ``dependencies`` of ``[project]`` and of ``extras``; an extra that names the project's own is followed."""
    optional = project.get("optional-dependencies", {})
    own = re.compile(rf"{re.escape(project['name'])}\[(.+)\]")
    found: list[str] = list(project.get("dependencies", []))
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise SystemExit(f"requirements.py: there is no extra '{extra}'; there are: {', '.join(sorted(optional))}")
        for line in optional[extra]:
            nested = own.fullmatch(line.replace(" ", ""))
            if nested:
                waiting += nested[1].split(",")
            else:
                found.append(line)
    return sorted(set(found))


def main() -> None:
    path, *extras = sys.argv[1:]
    project = tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(project, extras)))


if __name__ == "__main__":
    main()
