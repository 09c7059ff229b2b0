"""References of container images: ``REGISTRY/REPOSITORY[:TAG][@sha256:…]``.

The grammar is that of the OCI distribution project (``reference/regexp.go``), with a mandatory registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bafogpt.core.errors import UsageError

PREFIX = "docker:"
"""SkyPilot's ``image_id`` of a container image begins with this."""

_HOST = re.compile(r"(localhost|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:))(:[0-9]{1,5})?")
_PATH = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ImageReference:
    """The parts of ``REGISTRY/REPOSITORY[:TAG][@sha256:…]``; ``repository`` includes the registry."""

    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        host, slash, path = self.repository.partition("/")
        if not slash or not _HOST.fullmatch(host):
            raise ValueError(f"'{self.repository}' does not begin with a registry, as ghcr.io/bafogpt/train does")
        if not _PATH.fullmatch(path):
            raise ValueError(
                f"'{path}' cannot be a repository: lowercase letters and digits, with . _ - / between them"
            )
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise ValueError(f"'{self.tag}' cannot be a tag: letters, digits and . _ -, at most 128")
        if self.digest is not None and not SHA256.fullmatch(self.digest):
            raise ValueError(f"'{self.digest}' is not a digest: sha256: and 64 lowercase hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Parse a reference, with or without SkyPilot's ``docker:``. Raises :class:`UsageError`."""
        rest, at, digest = text.strip().removeprefix(PREFIX).partition("@")
        name, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:  # the colon of a port
            name, tag, colon = rest, "", ""
        try:
            return cls(repository=name, tag=tag if colon else None, digest=digest if at else None)
        except ValueError as error:
            raise UsageError(f"image {text!r}: {error}", "ghcr.io/bafogpt/train@sha256:…") from None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def pinnable(text: str | None, digest: str | None, repository: str) -> ImageReference:
    """The image to pin, with a digest.

    ``text`` is a reference, or None for ``repository``; ``digest`` is the output of a push: ``sha256:…``, or a
    reference with one. Raises :class:`UsageError`, also for two different digests.
    """
    hint = "bafogpt image pin ghcr.io/bafogpt/train@sha256:…"
    if text is None and digest is None:
        raise UsageError("no image to pin", hint)
    given = ImageReference.parse(text) if text is not None else None
    if digest is not None:
        pushed = ImageReference.parse(digest if "@" in digest else f"{repository}@{digest.strip()}")
        if given is None:
            given = pushed
        if "@" in digest and pushed.repository != given.repository:
            raise UsageError(f"the digest is of {pushed.repository}, not of {given.repository}", hint)
        if given.digest not in (None, pushed.digest):
            raise UsageError(f"two digests: {given.digest} and {pushed.digest}", "give one of them")
        given = ImageReference(repository=given.repository, tag=given.tag, digest=pushed.digest)
    assert given is not None
    if given.digest is None:
        raise UsageError(f"{given} has no digest: a tag can move", f"bafogpt image pin {given}@sha256:…")
    return given


def digest_of(reference: str | None) -> str | None:
    """``sha256:…`` of a reference by digest, else None; never raises."""
    digest = (reference or "").rpartition("@")[2]
    return digest if SHA256.fullmatch(digest) else None
