"""Command-line sources and targets: a local folder, a folder in a bucket, or a repository of the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bafogpt.core.errors import ConfigError
from bafogpt.core.settings import Settings
from bafogpt.folders.hub.repository import HubLocation, HubRepo
from bafogpt.storage import s3_client
from bafogpt.storage.bucket import Bucket


@dataclass(frozen=True)
class FolderLocation:
    """The location of a folder of files."""

    url: str
    settings: Settings
    local: Path | None = None
    """The path of a folder on this machine."""
    is_path: bool = False
    """Given as a path, not as a URL: a working folder, whose manifest may be out of date."""
    hub: HubLocation | None = None

    def bucket(self) -> Bucket:
        """The folder as a bucket; a repository of the Hub at its current commit, read only."""
        if self.hub is not None:
            return HubRepo.at(self.hub, self.settings)
        return Bucket.open(self.url, self.settings)

    def parent(self) -> Bucket:
        """The folder above this one."""
        return Bucket.open(self.url.rpartition("/")[0], self.settings)


PathBase = Literal["local", "bucket", "either"]
"""What a relative path is relative to: the working directory, the configured bucket, or the one of them that has it."""


def locate(text: str, settings: Settings, base: PathBase = "bucket") -> FolderLocation:
    """Parse ``hf://``, ``s3://``, ``file://`` or a path.

    A path that begins with ``/``, ``.`` or ``~`` is local; any other is relative to ``base``. Raises
    :class:`ConfigError` for an unknown scheme and for an empty local path.
    """
    if base == "either":
        base = "local" if os.path.exists(text) else "bucket"
    if text.startswith("hf://"):
        hub = HubLocation.parse(text)
        return FolderLocation(hub.url, settings, hub=hub)
    if "://" not in text:
        if not text and base == "local":
            raise ConfigError("the path is empty", "write . for the current folder")
        if base == "local" or text.startswith(("/", ".", "~")):
            return _local(Path(os.path.expanduser(text)), settings, is_path=True)
    bucket, name = (text, "") if "://" in text else (settings.bucket, text.strip("/"))
    parsed = s3_client.parse(bucket)
    if parsed.scheme == "file":
        return _local(Path(parsed.store) / name, settings, is_path=False)
    return FolderLocation("/".join(filter(None, (bucket.rstrip("/"), name))), settings)


def _local(path: Path, settings: Settings, is_path: bool) -> FolderLocation:
    absolute = Path(os.path.abspath(path))
    return FolderLocation(absolute.as_uri(), settings, local=absolute, is_path=is_path)
