"""The lists of checkpoint files that each node has uploaded, until node 0 commits them in its manifest.

``nodes/parts/0001-0002/step-00000040/node-1.json``: node 1's files of step 40, from rendezvous ``0001-0002``.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from bafogpt.core import schema
from bafogpt.core.errors import CorruptError, NotFoundError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import CheckpointFile


class PartMissingError(CorruptError):
    """A node lost its part of a checkpoint, which can never be complete now."""


class CheckpointParts:
    """The lists of one run, in its folder of the bucket."""

    def __init__(self, run: Bucket) -> None:
        self._bucket = run.child("nodes/parts")

    def put(self, rendezvous_id: str, step: int, node: int, sent: tuple[CheckpointFile, ...]) -> None:
        body = json.dumps([asdict(each) for each in sent]).encode()
        self._bucket.put(f"{rendezvous_id}/step-{step:08d}/node-{node}.json", body)

    def get(self, rendezvous_id: str, step: int, nodes: int) -> tuple[CheckpointFile, ...] | None:
        """The files of nodes 1, 2, … ``nodes`` - 1; None while a list is missing."""
        files: list[CheckpointFile] = []
        for node in range(1, nodes):
            name = f"{rendezvous_id}/step-{step:08d}/node-{node}.json"
            try:
                raw = json.loads(self._bucket.get(name))
            except NotFoundError:
                return None
            files += [schema.build(CheckpointFile, each, where=f"{self._bucket.url}/{name}") for each in raw]
        return tuple(files)

    def clear(self, rendezvous_id: str, step: int) -> None:
        """Remove the lists of a committed checkpoint."""
        self._bucket.delete_tree(f"{rendezvous_id}/step-{step:08d}")
