"""Pushing to the Hub: large files first, in parts that outlive a kill, then all at once by one commit.

Until the commit nobody sees anything of it. A large file goes by Git LFS in the parts that the Hub asks for; which of
them it has is kept in a journal below ``HOME/hub``, so an upload that was cut off goes on, and sends at most one part
twice. With hf_xet installed (and no bound on the bandwidth, which it does not know) the Hub's own client sends them
instead: it finds out by content what the Hub has.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core.errors import AuthError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import ProgressCallback
from bafogpt.storage.folders import manifest as folder_manifest
from bafogpt.storage.folders.listing import FileEntry, FileSource, FolderListing, require_unchanged
from bafogpt.storage.folders.manifest import MANIFEST, ModelFile, ModelManifest
from bafogpt.storage.hub import card
from bafogpt.storage.hub.lfs import Uploads
from bafogpt.storage.hub.repository import TOKEN_HINT, HubLocation, HubRepo, client, git_id, map_errors, token
from bafogpt.storage.transfer.bandwidth import Bandwidth

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

LARGE_BYTES = 10_000_000
"""The Hub keeps files above this outside git, whatever their name."""


def push(
    listing: FolderListing,
    location: HubLocation,
    settings: Settings,
    *,
    public: bool = False,
    progress: ProgressCallback = lambda count: None,
    bandwidth: Bandwidth | None = None,
) -> str:
    """Make the repository hold what ``listing`` (with all its hashes) lists, by one commit; that commit's id.

    A new repository is private unless ``public``. A model card is written unless a person wrote one. Raises
    :class:`UsageError` for a repository that is public and was not asked for as one, :class:`ConflictError` when
    somebody else commits meanwhile, and what :func:`bafogpt.storage.hub.repository.map_errors` gives.
    """
    with map_errors(location, "write"):
        api = client()
        _make(api, location, public)
        before = HubRepo.at(location, settings)
        with_xet = _xet_is_there() and bandwidth is None and listing.folder is not None
        if not with_xet:
            _without_xet()
        operations = [_operation(listing, entry, with_xet) for entry in listing.entries]
        uploads = Uploads(api, location, Path(settings.home) / "hub", progress, bandwidth)
        for entry, operation in zip(listing.entries, operations, strict=True):
            if entry.bytes > LARGE_BYTES:
                if with_xet:
                    api.preupload_lfs_files(location.repo, [operation], revision=location.revision, free_memory=False)
                    progress(entry.bytes)
                else:
                    uploads.send(entry.sha256, FileSource(listing, entry))
            else:
                progress(entry.bytes)
            require_unchanged(listing, entry)
        added, removed = _others(listing, location, before)
        info = api.create_commit(
            location.repo,
            operations=[*operations, *added, *removed],
            commit_message=f"{len(operations)} files, {listing.bytes / 1e6:,.1f} MB",
            revision=location.revision,
            parent_commit=before.commit or None,
        )
        commit = str(info.oid)
        _verify(listing, HubRepo.at(HubLocation(location.repo, commit), settings), operations)
        uploads.forget(entry.sha256 for entry in listing.entries)
        return commit


def unchanged(listing: FolderListing, location: HubLocation, settings: Settings) -> frozenset[str]:
    """Names of the files that the repository has already, with the same content."""
    try:
        repo = HubRepo.at(location, settings)
    except NotFoundError:
        return frozenset()
    there = {info.path for info in repo.list()}
    return frozenset(entry.name for entry in listing.entries if entry.name in there and _holds(repo, listing, entry))


def is_current(listing: FolderListing, location: HubLocation, settings: Settings) -> str:
    """The commit that has all this already, manifest included; empty when there is none."""
    try:
        repo = HubRepo.at(location, settings)
        manifest = folder_manifest.load(repo)
    except (NotFoundError, CorruptError):
        return ""
    same = manifest is not None and manifest.metadata == dict(listing.metadata)
    if not same or manifest is None or {each.name: each.digest for each in manifest.files} != _digests(listing):
        return ""
    there = {info.path for info in repo.list()}
    whole = all(entry.name in there and _holds(repo, listing, entry) for entry in listing.entries)
    return repo.commit if whole else ""


def _digests(listing: FolderListing) -> dict[str, str]:
    return {entry.name: entry.digest for entry in listing.entries}


def require_allowed(location: HubLocation, *, public: bool) -> None:
    """Raise what :func:`push` would before it sends anything: :class:`AuthError` without a token, :class:`UsageError`
    for a repository that is public and was not asked for as one. Nothing is made."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with map_errors(location, "write"):
        if token() is None:
            raise AuthError("HF_TOKEN is not set", TOKEN_HINT.format(what="write"))
        try:
            _require_private(client().model_info(location.repo).private, location, public)
        except RepositoryNotFoundError:
            return


def _require_private(private: bool | None, location: HubLocation, public: bool) -> None:
    if not private and not public:
        raise UsageError(f"hf://{location.repo} is public: everybody would see this", "add --public to agree")


def _make(api: HfApi, location: HubLocation, public: bool) -> None:
    """The repository, and the branch if one is named."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(location.repo)
    except RepositoryNotFoundError:
        api.create_repo(location.repo, private=not public, exist_ok=True)
        info = api.model_info(location.repo)
    _require_private(info.private, location, public)
    if location.revision is not None and location.revision != "main":
        api.create_branch(location.repo, branch=location.revision, exist_ok=True)


def _operation(listing: FolderListing, entry: FileEntry, with_xet: bool) -> CommitOperationAdd:
    """What the commit says of a file: of a small one its content, of a large one its hash."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    source = FileSource(listing, entry)
    if entry.bytes <= LARGE_BYTES:
        return CommitOperationAdd(entry.name, source.read(0, entry.bytes))
    if with_xet and listing.folder is not None:
        return CommitOperationAdd(entry.name, str(listing.folder / entry.object))
    operation = CommitOperationAdd(entry.name, b"")
    sample = source.read(0, min(512, entry.bytes))
    operation.upload_info = UploadInfo(size=entry.bytes, sample=sample, sha256=bytes.fromhex(entry.sha256))
    return operation


def _others(listing: FolderListing, location: HubLocation, before: HubRepo) -> tuple[list[Any], list[Any]]:
    """What the commit holds besides the files: manifest and card; and what goes, as the manifest before named it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {info.path for info in before.list()}
    added, names = [], {entry.name for entry in listing.entries}
    if card.CARD not in names and (card.CARD not in there or card.is_ours(before.get(card.CARD))):
        text = card.write(f"hf://{location.repo}", listing.metadata, len(listing.entries), listing.bytes)
        added.append(CommitOperationAdd(card.CARD, text))
    if listing.foreign:
        return added, []
    manifest = ModelManifest(
        files=tuple(
            ModelFile(name=entry.name, bytes=entry.bytes, digest=entry.digest, sha256=entry.sha256)
            for entry in listing.entries
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metadata=dict(listing.metadata),
    )
    added.append(CommitOperationAdd(MANIFEST, manifest.to_json()))
    earlier = folder_manifest.load(before) if MANIFEST in there else None
    gone = [each.name for each in earlier.files if each.name not in names and each.name in there] if earlier else []
    return added, [CommitOperationDelete(name, is_folder=False) for name in gone if name != card.CARD]


def _verify(listing: FolderListing, repo: HubRepo, operations: Iterable[CommitOperationAdd]) -> None:
    """Whether the commit holds every file: a ``.gitignore`` in the repository may have kept one out."""
    there = {info.path for info in repo.list()}
    for entry, _ in zip(listing.entries, operations, strict=True):
        if entry.name not in there:
            raise StorageError(f"{repo.url}: the commit does not hold {entry.name}", "look into its .gitignore")
        if not _holds(repo, listing, entry):
            raise CorruptError(f"{repo.url}/{entry.name}: not what was pushed", "give the same command again")


def _holds(repo: HubRepo, listing: FolderListing, entry: FileEntry) -> bool:
    large = repo.digest(entry.name)
    if large is not None:
        return large == f"sha256:{entry.sha256}" and repo.info(entry.name).bytes == entry.bytes
    if entry.bytes > LARGE_BYTES:
        return False
    return repo.git_id(entry.name) == git_id(FileSource(listing, entry).read(0, entry.bytes))


def _xet_is_there() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _without_xet() -> None:
    """2.x would send by Xet in the commit what has gone by LFS before."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
