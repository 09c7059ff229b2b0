"""References of images: what is one, what is not, and which may be pinned."""

from __future__ import annotations

import pytest

from bafogpt.core.errors import UsageError
from bafogpt.jobs.image_ref import ImageReference, digest_of, pinnable

REPOSITORY = "ghcr.io/bafogpt/train"
DIGEST, OTHER = (f"sha256:{digit * 64}" for digit in "ab")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (REPOSITORY, (REPOSITORY, None, None)),
        (f"{REPOSITORY}:0.1.0", (REPOSITORY, "0.1.0", None)),
        (f"docker:{REPOSITORY}@{DIGEST}", (REPOSITORY, None, DIGEST)),
        (f"127.0.0.1:5000/a/b_c--d.e:x@{DIGEST}\n", ("127.0.0.1:5000/a/b_c--d.e", "x", DIGEST)),
        ("localhost/bafogpt/train:dev", ("localhost/bafogpt/train", "dev", None)),
        ("registry:5000/train", ("registry:5000/train", None, None)),
    ],
)
def test_a_reference_is_read_and_written_the_same(text: str, parts: tuple[str, str | None, str | None]):
    reference = ImageReference.parse(text)
    assert (reference.repository, reference.tag, reference.digest) == parts
    assert str(reference) == text.strip().removeprefix("docker:")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not begin with a registry"),
        ("train", "does not begin with a registry"),
        ("bafogpt/train", "does not begin with a registry"),
        ("https://ghcr.io/bafogpt/train", "does not begin with a registry"),
        ("ghcr.io/Bafogpt/train", "cannot be a repository"),
        ("ghcr.io/", "cannot be a repository"),
        ("ghcr.io/a//b", "cannot be a repository"),
        ("ghcr.io/a b", "cannot be a repository"),
        ("ghcr.io/a\nimage_id: docker:x", "cannot be a repository"),
        (f"{REPOSITORY}:", "cannot be a tag"),
        (f"{REPOSITORY}:-x", "cannot be a tag"),
        (f"{REPOSITORY}:{'x' * 129}", "cannot be a tag"),
        (f"{REPOSITORY}@", "is not a digest"),
        (f"{REPOSITORY}@{DIGEST[:-1]}", "is not a digest"),
        (f"{REPOSITORY}@{DIGEST}0", "is not a digest"),
        (f"{REPOSITORY}@{DIGEST.upper()}", "is not a digest"),
        (f"{REPOSITORY}@sha512:{'a' * 128}", "is not a digest"),
        (f"{REPOSITORY}@{DIGEST}@{DIGEST}", "is not a digest"),
    ],
)
def test_what_is_not_a_reference_is_refused(text: str, says: str):
    with pytest.raises(UsageError, match=says):
        ImageReference.parse(text)


@pytest.mark.parametrize(
    ("text", "pushed", "pinned"),
    [
        (f"{REPOSITORY}:1@{DIGEST}", None, f"{REPOSITORY}:1@{DIGEST}"),
        (f"{REPOSITORY}:1", f"{DIGEST}\n", f"{REPOSITORY}:1@{DIGEST}"),
        (f"{REPOSITORY}:1@{DIGEST}", DIGEST, f"{REPOSITORY}:1@{DIGEST}"),
        (f"{REPOSITORY}:1", f"{REPOSITORY}@{DIGEST}", f"{REPOSITORY}:1@{DIGEST}"),
        (None, DIGEST, f"{REPOSITORY}@{DIGEST}"),
        (None, f"ghcr.io/own/train:2@{DIGEST}", f"ghcr.io/own/train:2@{DIGEST}"),
    ],
)
def test_a_reference_and_the_digest_of_a_push_make_one(text: str | None, pushed: str | None, pinned: str):
    assert str(pinnable(text, pushed, REPOSITORY)) == pinned


@pytest.mark.parametrize(
    ("text", "pushed", "says"),
    [
        (None, None, "no image to pin"),
        (f"{REPOSITORY}:1", None, "a tag can move"),
        (REPOSITORY, None, "a tag can move"),
        (None, f"{REPOSITORY}:1@", "is not a digest"),
        (None, "", "is not a digest"),
        (None, "pushed!\n", "is not a digest"),
        (f"{REPOSITORY}@{DIGEST}", OTHER, "two digests"),
        (REPOSITORY, f"ghcr.io/own/train@{DIGEST}", "the digest is of ghcr.io/own/train"),
    ],
)
def test_what_cannot_be_pinned_is_refused(text: str | None, pushed: str | None, says: str):
    with pytest.raises(UsageError, match=says) as caught:
        pinnable(text, pushed, REPOSITORY)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("reference", "digest"),
    [(f"x@{DIGEST}", DIGEST), (f"x@{DIGEST}0", None), ("x:1", None), ("ami-12", None), ("", None), (None, None)],
)
def test_the_digest_of_a_reference_is_told_only_when_it_is_one(reference: str | None, digest: str | None):
    assert digest_of(reference) == digest
