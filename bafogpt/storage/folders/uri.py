"""What a SRC or a DST on the command line names: a folder here, in a bucket, or a repository of the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bafogpt.core.errors import ConfigError
from bafogpt.core.settings import Settings
from bafogpt.storage import s3_client
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.hub.repository import HubLocation, HubRepo


@dataclass(frozen=True)
class Place:
    """A folder of files, wherever it is."""

    url: str
    settings: Settings
    local: Path | None = None
    """The folder's path when it is on this machine."""
    own: bool = False
    """Named by a path, not by a URL: a folder that a person works in. What it holds now counts, not what its manifest
    says of it."""
    hub: HubLocation | None = None

    def bucket(self) -> Bucket:
        """The folder as a bucket; a repository of the Hub at its present commit, read only."""
        if self.hub is not None:
            return HubRepo.at(self.hub, self.settings)
        return Bucket.open(self.url, self.settings)

    def parent(self) -> Bucket:
        """The folder above one in a bucket."""
        return Bucket.open(self.url.rpartition("/")[0], self.settings)


Bare = Literal["local", "bucket", "either"]


def locate(text: str, settings: Settings, bare: Bare = "bucket") -> Place:
    """The place that ``text`` names: ``hf://``, ``s3://`` or ``file://``, or a path.

    Paths that begin with ``/``, ``.`` or ``~`` are of this machine. Other paths are as ``bare`` says: of this machine
    as well, below the bucket of the settings, or whichever of the two is there. Raises :class:`ConfigError` for what
    is no place.
    """
    if bare == "either":
        bare = "local" if os.path.exists(text) else "bucket"
    if text.startswith("hf://"):
        location = HubLocation.parse(text)
        return Place(location.url, settings, hub=location)
    if "://" in text:
        location_in_bucket = s3_client.parse(text)
        if location_in_bucket.scheme == "file":
            return _here(Path(location_in_bucket.store), settings, own=False)
        return Place(text.rstrip("/"), settings)
    if not text and bare == "local":
        raise ConfigError("an empty path names no folder", "write . for the folder you are in")
    if bare == "local" or text.startswith(("/", ".", "~")):
        return _here(Path(os.path.expanduser(text)), settings, own=True)
    base = s3_client.parse(settings.bucket)
    if base.scheme == "file":
        return _here(Path(base.store) / text.strip("/"), settings, own=False)
    return Place("/".join(filter(None, (settings.bucket.rstrip("/"), text.strip("/")))), settings)


def _here(path: Path, settings: Settings, own: bool) -> Place:
    absolute = Path(os.path.abspath(path))
    return Place(absolute.as_uri(), settings, local=absolute, own=own)
