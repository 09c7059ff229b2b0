"""Pulls a published model: a verified copy of the files that a model folder needs, unchanged."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from bafogpt.core import terms
from bafogpt.core.errors import NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.folders import sync
from bafogpt.folders.sync import SyncPlan
from bafogpt.folders.uri import FolderLocation, locate
from bafogpt.model.formats import hf_config, safetensors_io
from bafogpt.model.formats.folder import COMPANION_FILES, ModelFolder
from bafogpt.storage.bucket import ProgressCallback

WANTED = (hf_config.CONFIG, "model*.safetensors", safetensors_io.INDEX, *COMPANION_FILES)
OURS = ("models/", "runs/")
"""Prefixes of folders in the bucket; other names of the form ``ORG/NAME`` are on the Hub."""


def source_of(text: str, settings: Settings) -> FolderLocation:
    """The location of ``google/gemma-2-2b`` (the Hub), ``models/zulu`` (the settings' bucket), or a URL."""
    bare = "://" not in text and not text.startswith((".", "/", "~"))
    if bare and not text.startswith(OURS) and text.count("/") == 1:
        return locate(f"hf://{text}", settings)
    return locate(text, settings)


def prepare(source: FolderLocation, target: FolderLocation, *, progress: ProgressCallback | None = None) -> SyncPlan:
    """Plan the copy. Raises :class:`NotFoundError` where the source has no model as safetensors."""
    plan = sync.prepare(source, target, progress=progress, include=is_wanted)
    names = [entry.name for entry in plan.listing.entries]
    if hf_config.CONFIG not in names or not fnmatch.filter(names, "*.safetensors"):
        raise NotFoundError(
            f"{source.url} has no {hf_config.CONFIG} with safetensors beside it",
            f"bafogpt storage ls {source.url}",
        )
    return plan


def fetch(
    source: FolderLocation, into: Path, settings: Settings, *, progress: ProgressCallback = lambda _: None
) -> ModelFolder:
    """Copy the model folder at ``source`` to the local folder ``into``, verified, and open it."""
    plan = prepare(source, locate(str(into.absolute()), settings, "local"))
    sync.execute(plan, progress=progress)
    return ModelFolder.open(into)


def is_wanted(name: str) -> bool:
    """Whether a file of a repository belongs to a model folder."""
    if "/" in name:
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WANTED) or terms.is_terms(name)
