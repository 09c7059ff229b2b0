#!/usr/bin/env python3
"""Add ``KEY=VALUE…`` to the image's description, ``/etc/bafogpt/image.json``.

A run records that file, whatever the image's name and registry. ``constraints`` is the SHA-256 of the image's own
constraints.txt, computed here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

STAMP = Path("/etc/bafogpt/image.json")
CONSTRAINTS = Path("/usr/share/bafogpt/constraints.txt")


def main() -> None:
    known = json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}
    known |= dict(word.split("=", 1) for word in sys.argv[1:])
    known["constraints"] = "sha256:" + hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
