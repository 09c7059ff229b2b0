"""``bafogpt data``: prepare datasets of tokens from text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.data.instructions import InstructionReport
    from bafogpt.data.prepare import PrepareReport
    from bafogpt.storage.bucket import Bucket
    from bafogpt.storage.tokens.manifest import TokenManifest

app = App(no_args_is_help=True, help="Turn text into datasets of tokens, and show them.")


T = TypeVar("T")

SOURCES_HELP = "Files or folders (.jsonl, .txt, .md, each also .gz or .zst), local or s3://, or 'starter'."
FILES_HELP = (
    "JSON lines with instruction, input, output, or with messages; local, s3:// or https://, or 'starter'. "
    "FILE:2 is used twice per epoch."
)


class DocumentOrder(StrEnum):
    """The order of documents in training."""

    CURRICULUM = "curriculum"
    SHUFFLED = "shuffled"


class LossOn(StrEnum):
    """The part of a conversation with a loss."""

    ANSWERS = "answers"
    ALL = "all"


class TooLong(StrEnum):
    """How a conversation is treated that does not fit into a sample."""

    CUT = "cut"
    DROP = "drop"


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """Where a dataset goes, and its tokenizer."""

    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="T", help="A tokenizer.json, a folder with one, or 'bytes'.")
    ]
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Dataset to create: a URL, or a path in the bucket.")
    ]
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False

    def options(self, kind: type[T]) -> T:
        """A ``kind`` (a dataclass) from the flags of the same names; its other fields have their defaults."""
        names = {each.name for each in fields(self)} & {each.name for each in fields(kind)}  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names}
        return kind(**{key: value.value if isinstance(value, StrEnum) else value for key, value in values.items()})

    @contextlib.contextmanager
    def create(self, settings: Settings) -> Iterator[Bucket]:
        """The folder for the dataset. A local folder, or the bucket of the embedded server, is created if needed."""
        from bafogpt.core import files
        from bafogpt.core.settings import EMBEDDED

        bucket = _dataset(self.out, settings)
        if bucket.url.startswith("file://"):
            with files.created_folder(Path(bucket.url.removeprefix("file://"))):
                yield bucket
            return
        if settings.s3_endpoint == EMBEDDED:
            bucket.create()
        yield bucket


@dataclass(frozen=True, kw_only=True)
class PrepareFlags(DatasetFlags):
    """How text becomes a dataset."""

    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Stage of documents without a 'stage'.")
    ] = None
    replay_share: Annotated[
        float,
        typer.Option("--replay-share", metavar="X", help="Share of training tokens that is English replay, 0 to 1."),
    ] = 0.05
    order: Annotated[
        DocumentOrder, typer.Option("--order", help="Order of documents: stage after stage, or shuffled by --seed.")
    ] = DocumentOrder.CURRICULUM
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed of the shuffled order.")] = 1
    validation: Annotated[
        float, typer.Option("--validation", metavar="X", help="Share of each stage's documents held out, 0 to 0.5.")
    ] = 0.02
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Begin documents with <bos>. Default: as the tokenizer's file sets it."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class InstructionFlags(DatasetFlags):
    """How conversations become a dataset."""

    style: Annotated[
        str, typer.Option("--style", metavar="S", help="Prompt style: alpaca, plain, or chat (the tokenizer's own).")
    ] = "alpaca"
    context: Annotated[
        int, typer.Option("--context", metavar="T", help="Tokens per sample; must equal train.data.sequence_length.")
    ] = 2048
    mix: Annotated[
        str,
        typer.Option(
            "--mix", metavar="M", help="Records to use: all; bilingual (isiZulu question, English answer); zulu."
        ),
    ] = "all"
    learn: Annotated[
        LossOn, typer.Option("--learn", help="Compute the loss on the answers only, or on all tokens.")
    ] = LossOn.ANSWERS
    too_long: Annotated[
        TooLong, typer.Option("--too-long", help="Cut or drop a conversation that does not fit into a sample.")
    ] = TooLong.CUT
    validation: Annotated[
        float, typer.Option("--validation", metavar="X", help="Share of the conversations held out, 0 to 0.5.")
    ] = 0.02
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed of the order of conversations.")] = 1


@app.command("prepare")
def prepare_command(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE", help=SOURCES_HELP)], flags: PrepareFlags, sink: Output
) -> None:
    """Tokenize text into a dataset, in curriculum order or shuffled.

    The curriculum is the order of stages: dictionary, translation, transcription, document, news, poem, web, wikipedia.
    English text (stage replay) is spread evenly over them. An interrupted command leaves no dataset.
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data import tokenizer as tokenizers
    from bafogpt.data.prepare import PrepareOptions, prepare

    settings = configuration.load()
    options = flags.options(PrepareOptions)
    tokenizer = tokenizers.load(flags.tokenizer)
    with flags.create(settings) as bucket, sink.progress("reading", None, unit="documents") as advance:
        report = prepare(source, tokenizer=tokenizer, out=bucket, options=options, settings=settings, progress=advance)
    sink.result(report.to_dict(), _describe(report), id=report.url)


@app.command("instructions")
def instructions_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE[:WEIGHT]", help=FILES_HELP)],
    flags: InstructionFlags,
    sink: Output,
) -> None:
    """Tokenize questions and answers into a dataset for fine-tuning.

    Several conversations fill a sample; none is split over two. The validation set shares no question with the
    training set, nor a question's translation (records with the same 'pair').
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data import prompts
    from bafogpt.data import tokenizer as tokenizers
    from bafogpt.data.instructions import InstructionOptions, prepare

    settings = configuration.load()
    options = flags.options(InstructionOptions)
    tokenizer = tokenizers.load(flags.tokenizer)
    style = prompts.load(flags.style, tokenizer)
    with flags.create(settings) as out, sink.progress("reading", None, unit="records") as advance:
        report = prepare(
            files, style=style, tokenizer=tokenizer, out=out, options=options, settings=settings, progress=advance
        )
    sink.result(report.to_dict(), _describe_instructions(report), id=report.url)


@app.command("show")
def show_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="A dataset: a URL, or a path in the bucket.")], sink: Output
) -> None:
    """Show a dataset: its stages in order, and their sources."""
    from bafogpt.core import settings as configuration
    from bafogpt.storage.tokens import manifest as manifests

    bucket = _dataset(url, configuration.load())
    manifest = manifests.load(bucket)
    if sink.json or sink.quiet:
        sink.result(_record(bucket.url, manifest), id=manifest.digest)
        return
    sink.say(_headline(bucket.url, manifest))
    sink.rows(_rows(manifest), ["split", "stage", "source", "begins", "documents", "tokens", "share"], id="stage")


def _dataset(place: str, settings: Settings) -> Bucket:
    """The folder of a URL, or of a path in the bucket of the settings."""
    from bafogpt.storage.bucket import Bucket

    if "://" in place:
        return Bucket.open(place, settings)
    return Bucket.open(settings.bucket, settings).child(place)


def _describe_instructions(report: InstructionReport) -> str:
    """The result for people."""
    train, validation = report.conversations["train"], report.conversations["validation"]
    learned = f"{report.tokens:,} tokens, {100 * report.learned / report.tokens:.1f} % of them learned"
    odd = (("cut", report.cut), ("dropped", report.dropped), ("duplicates left out", report.duplicates))
    counts = ", ".join(f"{count:,} {what}" for what, count in odd)
    return "\n".join(
        (
            f"{report.records:,} records of {report.files} files: {counts}",
            f"train {train:,} conversations, {learned}; {report.samples['train']:,} samples, "
            f"{100 * report.filled:.1f} % full",
            f"validation {validation:,} conversations, {report.samples['validation']:,} samples",
            f"wrote {report.url} in {report.seconds:.1f} s",
        )
    )


def _record(url: str, manifest: TokenManifest) -> dict[str, Any]:
    """The manifest without its shards."""
    content = asdict(manifest)
    for split in content["splits"].values():
        split["shards"] = len(split["shards"])
    return {"url": url, "digest": manifest.digest, **content}


def _rows(manifest: TokenManifest) -> list[dict[str, Any]]:
    """The stages of each split in order, each with its sources, and the total."""
    rows: list[dict[str, Any]] = []
    for name, split in manifest.splits.items():
        for stage in split.stages:
            counts = {"begins": stage.start_token, "documents": stage.documents, "tokens": stage.tokens}
            rows.append({"split": name, "stage": stage.name, **counts})
            for source, tokens in stage.sources.items():
                rows.append({"split": name, "stage": stage.name, "source": source, "tokens": tokens})
        rows.append({"split": name, "stage": "total", "documents": split.documents, "tokens": split.tokens})
    for row in rows:
        row["share"] = f"{100 * row['tokens'] / max(manifest.splits[row['split']].tokens, 1):.1f} %"
    return rows


def _headline(url: str, manifest: TokenManifest) -> str:
    splits = ", ".join(f"{name} {split.tokens:,} tokens" for name, split in manifest.splits.items())
    return f"{url}: {splits}; tokenizer {manifest.tokenizer.name}, {manifest.dtype}"


def _describe(report: PrepareReport) -> str:
    """The result for people."""
    lines = [f"{'stage':<14}{'documents':>11}{'words':>13}{'tokens':>13}{'MB':>9}"]
    for stage, count in [*report.stages.items(), ("total", report.total)]:
        sizes = f"{count.documents:>11,}{count.words:>13,}{count.tokens:>13,}{count.bytes / 1e6:>9,.2f}"
        lines.append(f"{stage:<14}{sizes}")
    left_out = f"; left out: {report.empty} empty, {report.duplicates} that repeat a validation text"
    split = f"train {report.train_tokens:,} tokens, {100 * report.replay_share:.1f} % of it replay"
    lines += [
        f"{split}; validation {report.validation_tokens:,} tokens{left_out}",
        f"wrote {report.url} in {report.seconds:.1f} s",
    ]
    return "\n".join(lines)
