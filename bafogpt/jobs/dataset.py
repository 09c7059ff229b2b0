"""The dataset of a run: its digest, and whether it is still the recorded one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bafogpt.core import digest
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage.bucket import Bucket


def describe(data: Bucket) -> dict[str, Any]:
    """``digest``, ``created`` and ``tokenizer`` (its digest) of a dataset, from its manifest alone.

    A manifest without a digest is identified by the digest of its bytes. Raises :class:`CorruptError`.
    """
    raw = data.get("manifest.json")
    try:
        manifest = json.loads(raw)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise CorruptError(f"{data.url}/manifest.json: not a manifest", "bafogpt data prepare … --overwrite")
    tokenizer = manifest.get("tokenizer")
    return {
        "digest": str(manifest.get("digest") or digest.of_bytes(raw)),
        "created": str(manifest.get("created") or ""),
        "tokenizer": str(tokenizer.get("digest") or "") if isinstance(tokenizer, dict) else "",
    }


def check_same_data(recorded: Mapping[str, Any], data: Bucket, run: str) -> None:
    """Raise :class:`CorruptError` when ``data`` is not the dataset that ``run`` read."""
    hint = f"bafogpt runs rerun {run} --set train.data.path=FOLDER"
    try:
        found = describe(data)["digest"]
    except NotFoundError:
        raise NotFoundError(f"the dataset of {run} is no longer at {data.url}", hint) from None
    expected = recorded.get("digest")
    if expected and found != expected:
        raise CorruptError(
            f"{data.url} is not what {run} was trained on: its digest is {found}, was {expected}",
            f"{hint} accepts another dataset",
        )
