"""The three manifests share one strict parser: whatever is wrong is refused in one short line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from bafogpt.core.errors import CorruptError
from bafogpt.folders import manifest as folder_manifest
from bafogpt.folders.manifest import ModelFile, ModelManifest
from bafogpt.storage import json_manifest
from bafogpt.storage.checkpoints.manifest import Checkpoint, CheckpointFile
from bafogpt.storage.tokens import manifest as token_manifest
from bafogpt.storage.tokens.manifest import Shard, Split, Stage, TextSource, TokenizerInfo, TokenManifest

DIGEST = "blake3:" + "0" * 64
CHECKPOINT = Checkpoint(
    step=7,
    samples=112,
    created="2026-01-01T00:00:00+00:00",
    upload_id="one",
    files=(CheckpointFile("a", 10, DIGEST, "step-00000007/one/a", "etag"),),
    metadata={"loss": 1.25},
)
MODEL = ModelManifest(
    files=(ModelFile(name="a", bytes=1, digest=DIGEST), ModelFile(name="b/c", bytes=0, digest=DIGEST, etag="x")),
    created="2026-01-01T00:00:00+00:00",
    metadata={"step": 4},
)
TOKENS = TokenManifest(
    dtype="uint16",
    vocab_size=320,
    tokenizer=TokenizerInfo("bytes", DIGEST, eos_id=1, bos_id=None),
    splits={
        "train": Split(
            tokens=9,
            documents=2,
            shards=(Shard("train-00000-00000000.bin", 9, 2, "0" * 32, "xxh3:0"),),
            stages=(Stage("web", 0, 4, 1, {"a": 4}), Stage("news", 4, 5, 1, {"a": 2, "b": 3})),
        ),
        "validation": Split(0, 0, (), ()),
    },
    sources=(TextSource("a.jsonl", DIGEST, 2),),
    created="2026-01-01T00:00:00+00:00",
)
Parse = Callable[[bytes, str], Any]
FORMATS = {
    "checkpoint": (CHECKPOINT, Checkpoint.from_json),
    "model": (MODEL, folder_manifest.from_json),
    "tokens": (TOKENS, token_manifest.from_json),
}
every_format = pytest.mark.parametrize(("manifest", "parse"), FORMATS.values(), ids=FORMATS)


def sealed(manifest: Any, path: str, value: Any) -> bytes:
    """The JSON of ``manifest`` with another value at the dotted ``path``, and the digest that goes with it."""
    plain = json.loads(manifest.to_json())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = plain
    for key in parents:
        inner = inner[key]
    inner[last] = value
    undigested = ("created",) if isinstance(manifest, TokenManifest) else ()
    return json.dumps({**plain, "digest": json_manifest.digest_of(plain, undigested)}).encode()


@every_format
def test_a_manifest_reads_back_and_leaves_out_empty_fields(manifest: Any, parse: Parse):
    assert parse(manifest.to_json(), "here") == manifest
    assert not {b'"packing"', b'"answers"', b'"sha256"', b'"add_bos"'} & set(manifest.to_json().split())


@every_format
def test_no_flipped_bit_makes_another_manifest(manifest: Any, parse: Parse):
    data = manifest.to_json()
    for position in range(len(data)):
        for bit in (0, 4):
            flipped = data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]
            try:
                read = parse(flipped, "here")
            except CorruptError:
                continue
            assert getattr(read, "digest", read) == getattr(manifest, "digest", manifest)  # white space, "created"


@every_format
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'"\\ud800"', b'{"format": 3}', b"[" * 100_000, b"9" * 5000]
)
def test_foreign_content_is_refused(manifest: Any, parse: Parse, data: bytes):
    with pytest.raises(CorruptError, match="here: ") as raised:
        parse(data, "here")
    assert raised.value.hint


@every_format
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "else/1", "format 'else/1', this version reads"),
        ("format", None, "this version reads"),
        ("created", 3, "'created' is 3, expected text"),
        ("unknown", 1, "unknown key 'unknown'"),
        ("unknown" * 10_000, 1, "unknown key"),
        ("created", ["x" * 10_000], "'created' is"),
        ("created", {"\ud800": float("nan")}, "'created' is"),
    ],
)
def test_a_wrong_field_is_refused_in_one_short_line(manifest: Any, parse: Parse, path: str, value: Any, message: str):
    with pytest.raises(CorruptError) as raised:
        parse(sealed(manifest, path, value), "here")
    assert message in raised.value.message
    assert len(raised.value.message) < 500


@every_format
def test_content_that_does_not_match_its_digest_and_a_newer_version_are_refused(manifest: Any, parse: Parse):
    plain = json.loads(manifest.to_json())
    with pytest.raises(CorruptError, match="does not match its digest"):
        parse(json.dumps({**plain, "more": 1}).encode(), "here")
    with pytest.raises(CorruptError, match="this version reads") as raised:
        parse(sealed(manifest, "format", plain["format"].replace("/1", "/2")), "here")
    assert raised.value.hint == "pip install --upgrade bafogpt"
    with pytest.raises(CorruptError, match="not a JSON object"):
        parse(b" " * json_manifest.MAX_BYTES + b"{}", "here")


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("checkpoint", "step", "40", "'step' is '40', expected a whole number"),
        ("checkpoint", "samples", -1, "negative"),
        ("checkpoint", "files", [], "no files"),
        ("checkpoint", "files", [{"name": "x"}], "files[0].bytes' is missing"),
        ("checkpoint", "files.0.bytes", "1", "expected a whole number"),
        ("checkpoint", "files.0.bytes", -1, "negative"),
        ("checkpoint", "files.0.name", "sub/x", "not a plain file name"),
        ("checkpoint", "files.0.name", "../../x", "not a plain file name"),
        ("checkpoint", "files.0.name", "", "not a plain file name"),
        ("checkpoint", "files.0.name", "a.partial", "not a plain file name"),
        ("checkpoint", "files.0.name", "a.partial.journal", "not a plain file name"),
        ("checkpoint", "files.0.object", "/etc/passwd", "unsafe file name"),
        ("checkpoint", "files.0.object", "a/../b", "unsafe file name"),
        ("checkpoint", "files.0.object", "a\\b", "unsafe file name"),
        ("checkpoint", "files", [{"name": "a", "bytes": 1, "digest": DIGEST, "object": "x"}] * 2, "of one name"),
        ("checkpoint", "metadata", None, "expected a mapping"),
        ("model", "state", "half", "expected one of unfinished, complete"),
        ("model", "files", 3, "expected a list"),
        ("model", "files.0", {"name": "a"}, "is missing"),
        ("model", "files.0.bytes", -1, "wrong size or digest"),
        ("model", "files.0.bytes", True, "expected a whole number"),
        ("model", "files.0.digest", "crc:00", "wrong size or digest"),
        ("model", "files.0.sha256", "00", "wrong size or digest"),
        ("model", "files.0.name", 1, "expected text"),
        ("model", "files.0.name", "../a", "unsafe file name"),
        ("model", "metadata", [], "expected a mapping"),
        ("tokens", "byte_order", "big", "expected one of little"),
        ("tokens", "dtype", "uint8", "'dtype' is 'uint8'"),
        ("tokens", "block_bytes", 0, "block_bytes"),
        ("tokens", "block_bytes", 63, "block_bytes 63 is not a multiple of 2"),
        ("tokens", "vocab_size", "many", "'vocab_size' is 'many', expected a whole number"),
        ("tokens", "vocab_size", 1, "vocab_size 1 does not fit"),
        ("tokens", "vocab_size", 1 << 17, "does not fit uint16"),
        ("tokens", "tokenizer", [], "'tokenizer' is [], expected a mapping"),
        ("tokens", "tokenizer.bos_id", 320, "does not have the BOS token"),
        ("tokens", "tokenizer.add_bos", True, "add_bos without a bos_id"),
        ("tokens", "packing", {"sequence_length": 1, "style": "", "template": ""}, "samples of 1 tokens"),
        ("tokens", "splits.test", {"tokens": 0, "documents": 0, "shards": [], "stages": []}, "splits are"),
        ("tokens", "splits.train.shards", {}, "expected a list"),
        ("tokens", "splits.train.shards.0.name", "../../x.bin", "unsafe file name"),
        ("tokens", "splits.train.shards.0.name", "sub/x.bin", "not the name of a shard"),
        ("tokens", "splits.train.shards.0.tokens", 10, "do not agree"),
        ("tokens", "splits.train.shards.0.tokens", -1, "number of blocks"),
        ("tokens", "splits.train.shards.0.blocks", "00", "number of blocks"),
        ("tokens", "splits.train.shards.0.documents", 9, "documents of the shards"),
        ("tokens", "splits.train.shards.0.documents", -1, "negative"),
        ("tokens", "splits.train.tokens", 5, "do not agree"),
        ("tokens", "splits.train.stages.1.start_token", 99, "does not follow"),
        ("tokens", "splits.train.stages.0.sources", {"a": 1}, "its sum is off"),
        ("tokens", "splits.train.stages.0.sources", {"a": -1, "b": 5}, "negative"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(name: str, path: str, value: Any, message: str):
    manifest, parse = FORMATS[name]
    with pytest.raises(CorruptError) as raised:
        parse(sealed(manifest, path, value), "here")
    assert message in raised.value.message


def test_an_empty_value_reads_back_where_the_default_is_another():
    @dataclass
    class Flags:
        on: bool = True
        name: str | None = None
        count: int = 0

    data = json_manifest.encode(Flags(on=False, name=""), "flags/1")

    assert json_manifest.parse(Flags, data, "x", form="flags/1", hint="") == Flags(on=False, name="")
    assert "count" not in json.loads(data)
