"""Push to the Hub: large files first, in resumable parts, then everything by one commit.

Nothing is visible before the commit. A large file goes by Git LFS in the parts that the Hub asks for; a journal below
``HOME/hub`` keeps which parts the Hub has, so an interrupted upload resumes and sends at most one part twice. With
hf_xet installed, and no limit on the bandwidth, the Hub's own client sends large files instead: it deduplicates by
content.
"""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bafogpt.core.errors import AuthError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.hub import card
from bafogpt.folders.hub.lfs import Uploads
from bafogpt.folders.hub.repository import TOKEN_HINT, HubLocation, HubRepo, client, git_id, map_errors, token
from bafogpt.folders.listing import FileEntry, FileSource, FolderListing, require_unchanged
from bafogpt.folders.manifest import MANIFEST, ModelManifest
from bafogpt.storage.bucket import ProgressCallback
from bafogpt.storage.transfer.bandwidth import Bandwidth

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

LARGE_BYTES = 10_000_000
"""The Hub keeps larger files outside git, whatever their name."""


def push(
    listing: FolderListing,
    location: HubLocation,
    settings: Settings,
    *,
    public: bool = False,
    progress: ProgressCallback = lambda count: None,
    bandwidth: Bandwidth | None = None,
) -> str:
    """Make the repository hold the files of ``listing`` (with all its hashes) by one commit; that commit's id.

    A new repository is private unless ``public``. A model card is written unless a person wrote one. Raises
    :class:`UsageError` for a repository that is public without ``public``, :class:`~bafogpt.core.errors.ConflictError`
    when another commit comes first, and what :func:`bafogpt.folders.hub.repository.map_errors` raises.
    """
    with map_errors(location, "write"):
        api = client()
        _create(api, location, public)
        before = HubRepo.at(location, settings)
        uploads = Uploads(api, location, Path(settings.home) / "hub", progress, bandwidth)
        operations = _send_files(api, listing, location, uploads, progress, with_xet=bandwidth is None)
        added, removed = _manifest_and_card(listing, location, before)
        info = api.create_commit(
            location.repo,
            operations=[*operations, *added, *removed],
            commit_message=f"{len(operations)} files, {listing.bytes / 1e6:,.1f} MB",
            revision=location.revision,
            parent_commit=before.commit or None,
        )
        commit = str(info.oid)
        _verify(listing, HubRepo.at(HubLocation(location.repo, commit), settings))
        uploads.forget(entry.sha256 for entry in listing.entries)
        return commit


def _send_files(
    api: HfApi,
    listing: FolderListing,
    location: HubLocation,
    uploads: Uploads,
    progress: ProgressCallback,
    with_xet: bool,
) -> list[CommitOperationAdd]:
    """Send the large files. Returns the operations that add all files to the commit."""
    with_xet = with_xet and _has_xet() and listing.folder is not None
    if not with_xet:
        _disable_xet()
    operations = [_operation(listing, entry, with_xet) for entry in listing.entries]
    for entry, operation in zip(listing.entries, operations, strict=True):
        if entry.bytes > LARGE_BYTES and not with_xet:
            uploads.send(entry.sha256, FileSource(listing, entry))
        else:
            if entry.bytes > LARGE_BYTES:
                api.preupload_lfs_files(location.repo, [operation], revision=location.revision, free_memory=False)
            progress(entry.bytes)
        require_unchanged(listing, entry)
    return operations


def compare(listing: FolderListing, location: HubLocation, settings: Settings) -> tuple[frozenset[str], str]:
    """The names of the files that the repository has with the same content, and its commit if nothing is missing,
    the manifest included."""
    try:
        repo = HubRepo.at(location, settings)
    except NotFoundError:
        return frozenset(), ""
    objects = {info.path for info in repo.list()}
    names = frozenset(entry.name for entry in listing.entries if entry.name in objects and _holds(repo, listing, entry))
    try:
        manifest = folder_manifest.load(repo)
    except CorruptError:
        manifest = None
    digests = {entry.name: entry.digest for entry in listing.entries}
    finished = manifest is not None and manifest.is_complete(names, listing.metadata)
    finished = finished and manifest is not None and {each.name: each.digest for each in manifest.files} == digests
    return names, repo.commit if finished else ""


def require_allowed(location: HubLocation, *, public: bool) -> None:
    """Raise :class:`AuthError` without a token, :class:`UsageError` for a repository that is public without
    ``public``. Changes nothing."""
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
        raise UsageError(f"hf://{location.repo} is public: anyone can read this", "add --public to agree")


def _create(api: HfApi, location: HubLocation, public: bool) -> None:
    """Create the repository, and the branch if one is named, unless they exist."""
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
    """The commit's entry for a file: with the content of a small file, with the hash of a large one."""
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


def _manifest_and_card(listing: FolderListing, location: HubLocation, before: HubRepo) -> tuple[list[Any], list[Any]]:
    """Operations that add manifest and card, and that delete files which only the previous manifest lists."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {info.path for info in before.list()}
    added, names = [], {entry.name for entry in listing.entries}
    if card.CARD not in names and (card.CARD not in there or card.is_ours(before.get(card.CARD))):
        text = card.write(f"hf://{location.repo}", listing.metadata, len(listing.entries), listing.bytes)
        added.append(CommitOperationAdd(card.CARD, text))
    if listing.foreign:
        return added, []
    manifest = ModelManifest(
        files=tuple(entry.to_model_file() for entry in listing.entries),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metadata=dict(listing.metadata),
    )
    added.append(CommitOperationAdd(MANIFEST, manifest.to_json()))
    earlier = folder_manifest.load(before) if MANIFEST in there else None
    gone = [each.name for each in earlier.files if each.name not in names and each.name in there] if earlier else []
    return added, [CommitOperationDelete(name, is_folder=False) for name in gone if name != card.CARD]


def _verify(listing: FolderListing, repo: HubRepo) -> None:
    """Raise unless the commit holds every file: a ``.gitignore`` in the repository may have excluded one."""
    objects = {info.path for info in repo.list()}
    for entry in listing.entries:
        if entry.name not in objects:
            raise StorageError(f"{repo.url}: the commit does not hold {entry.name}", "check its .gitignore")
        if not _holds(repo, listing, entry):
            raise CorruptError(f"{repo.url}/{entry.name}: does not match its hash", "repeat the command")


def _holds(repo: HubRepo, listing: FolderListing, entry: FileEntry) -> bool:
    large = repo.digest(entry.name)
    if large is not None:
        return large == f"sha256:{entry.sha256}" and repo.info(entry.name).bytes == entry.bytes
    if entry.bytes > LARGE_BYTES:
        return False
    return repo.git_id(entry.name) == git_id(FileSource(listing, entry).read(0, entry.bytes))


def _has_xet() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _disable_xet() -> None:
    """Keep huggingface_hub 2.x from sending by Xet what LFS has sent already."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
