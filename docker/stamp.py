#!/usr/bin/env python3
"""Writes what the image is into the image: ``stamp.py KEY=VALUE…`` adds to ``/etc/bafogpt/image.json``.

A run reads that file and records it, wherever the image was pulled from and under whatever name. ``constraints`` is
the SHA-256 of the constraints.txt that lies in the image, computed here, so that it cannot say anything else.
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
